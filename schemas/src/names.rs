//! Names that cross a boundary: streams, subjects, headers. Each exists once, here.

use crate::entity::Entity;
use crate::finding::Severity;

/// Number of shards of the event stream. Wire law: producers and consumers must agree on it.
pub const SHARD_COUNT: u16 = 64;

/// Stream of raw events, one subject per cluster and shard.
pub const STREAM_EVENTS: &str = "TAPIO_EVENTS";
/// Stream of signals, one subject per cluster.
pub const STREAM_SIGNALS: &str = "TAPIO_SIGNALS";
/// Stream of published findings.
pub const STREAM_INSIGHTS: &str = "TAPIO_INSIGHTS";
/// Stream of messages that could not be decoded, with the reason.
pub const STREAM_DEADLETTER: &str = "TAPIO_DEADLETTER";

/// Subject filter of [`STREAM_EVENTS`].
pub const SUBJECTS_EVENTS: &str = "tapio.v1.events.>";
/// Subject filter of [`STREAM_SIGNALS`].
pub const SUBJECTS_SIGNALS: &str = "tapio.v1.signals.>";
/// Subject filter of [`STREAM_INSIGHTS`].
pub const SUBJECTS_INSIGHTS: &str = "tapio.v1.insights.>";
/// Subjects of the fences of [`STREAM_INSIGHTS`], beside the findings so that who reads those does not see them.
pub const SUBJECTS_INSIGHTS_FENCE: &str = "tapio.v1.insights-fence.>";
/// Subject filter of [`STREAM_DEADLETTER`].
pub const SUBJECTS_DEADLETTER: &str = "tapio.v1.deadletter.>";
/// Filter of the first words of news, of all clusters. Plain NATS, in no stream.
pub const SUBJECTS_NEWS: &str = "tapio.v1.news.>";
/// Prefix of request/reply subjects (a NATS micro service).
pub const SUBJECT_QUERY_PREFIX: &str = "tapio.v1.query";

/// Where the owner of a cluster's incidents is asked whether it has heard of an entity: the question is a query for it as
/// text, the answer `{"heard":true}`.
pub fn entity_query_subject(cluster: &str) -> String {
    format!("{SUBJECT_QUERY_PREFIX}.entity.{}", token(cluster))
}

/// JetStream key-value bucket that holds low-water marks and leases.
pub const BUCKET_STATE: &str = "tapio_state";

/// Prefix of the keys of leases in [`BUCKET_STATE`].
const KEY_LEASE_PREFIX: &str = "lease";

/// JetStream de-duplication header.
pub const HEADER_MSG_ID: &str = "Nats-Msg-Id";
/// Why a message is in the dead-letter stream.
pub const HEADER_REASON: &str = "Tapio-Reason";
/// Subject a dead-lettered message came from.
pub const HEADER_ORIGIN: &str = "Tapio-Origin-Subject";
/// Epoch of the lease under whose fence a message was published.
pub const HEADER_FENCE_EPOCH: &str = "Tapio-Fence-Epoch";
/// CloudEvents `type` of a finding.
pub const CLOUDEVENT_TYPE_FINDING: &str = "dev.tapio.finding.v1";

/// Name of the custom event that tells a loss, with the attributes `gap.source`, `gap.reason`, `gap.lost`,
/// `gap.from` and `gap.to` (unix nanoseconds).
pub const EVENT_GAP: &str = "tapio.gap";

/// Name of one of the `count` streams that hold the events together; with one it is [`STREAM_EVENTS`].
pub fn events_stream(count: u16, index: u16) -> String {
    if count <= 1 { STREAM_EVENTS.to_owned() } else { format!("{STREAM_EVENTS}_{index}") }
}

/// Which of `count` streams holds a shard: each holds a range of shards, as many as the others or one more.
pub fn events_stream_index(count: u16, shard: u16) -> u16 {
    // In 0..count for every shard below SHARD_COUNT.
    (u32::from(shard % SHARD_COUNT) * u32::from(count) / u32::from(SHARD_COUNT)) as u16
}

/// Subject filter of one shard's events of every cluster: `tapio.v1.events.*.<shard>`.
pub fn events_shard_filter(shard: u16) -> String {
    format!("tapio.v1.events.*.{shard}")
}

/// Subject of one shard's events: `tapio.v1.events.<cluster>.<shard>`.
pub fn events_subject(cluster: &str, shard: u16) -> String {
    format!("tapio.v1.events.{}.{shard}", token(cluster))
}

/// Filter for all shards of a cluster.
pub fn events_filter(cluster: &str) -> String {
    format!("tapio.v1.events.{}.*", token(cluster))
}

/// Subject of a cluster's signals: `tapio.v1.signals.<cluster>`.
pub fn signals_subject(cluster: &str) -> String {
    format!("tapio.v1.signals.{}", token(cluster))
}

/// Subject of the first words of a cluster's news: `tapio.v1.news.<cluster>`. At most once and in no stream: what is said
/// here is said again, bindingly, on [`signals_subject`].
pub fn news_subject(cluster: &str) -> String {
    format!("tapio.v1.news.{}", token(cluster))
}

/// Subject of a finding: `tapio.v1.insights.<severity>.<cluster>.<namespace>.<kind>.<name>`.
pub fn insight_subject(severity: Severity, cluster: &str, entity: &Entity) -> String {
    format!(
        "tapio.v1.insights.{}.{}.{}.{}.{}",
        severity.as_str(),
        token(cluster),
        token(&entity.namespace),
        token(&entity.kind),
        token(&entity.name)
    )
}

/// Subject of the fence that the owner of a cluster's incidents holds while it publishes findings.
pub fn insights_fence_subject(cluster: &str) -> String {
    format!("tapio.v1.insights-fence.{}", token(cluster))
}

/// Dead-letter subject of a stage (`events`, `signals`, …).
pub fn deadletter_subject(stage: &str) -> String {
    format!("tapio.v1.deadletter.{}", token(stage))
}

/// Group of the replicas of a role in a cluster, which share its leases: `<role>.<cluster>`.
pub fn lease_group(role: &str, cluster: &str) -> String {
    format!("{role}.{}", token(cluster))
}

/// Keys of a group's members and leases begin with this and a dot: `lease.<group>`.
pub fn lease_prefix(group: &str) -> String {
    format!("{KEY_LEASE_PREFIX}.{group}")
}

/// Key of a member: `lease.<group>.member.<replica>`.
pub fn lease_member_key(group: &str, replica: &str) -> String {
    format!("{KEY_LEASE_PREFIX}.{group}.member.{replica}")
}

/// Key of what can be owned: `lease.<group>.resource.<resource>`.
pub fn lease_resource_key(group: &str, resource: &str) -> String {
    format!("{KEY_LEASE_PREFIX}.{group}.resource.{resource}")
}

/// Keys of what processes tell of themselves begin with this and a dot.
pub const KEY_STATUS_PREFIX: &str = "status";

/// Key of what a process tells of itself: `status.<role>.<cluster>.<name>`.
pub fn status_key(role: &str, cluster: &str, name: &str) -> String {
    format!("{KEY_STATUS_PREFIX}.{role}.{}.{}", token(cluster), token(name))
}

/// Key of the learnt priors of a cluster: `priors.<cluster>`.
pub fn priors_key(cluster: &str) -> String {
    format!("priors.{}", token(cluster))
}

/// Encodes free text as one NATS subject token: anything but ASCII letters, digits, `-` and `_`
/// becomes `_`; the empty string becomes `_`; longer than 128 bytes is cut.
pub fn token(text: &str) -> String {
    const TOKEN_BYTES_MAX: usize = 128;
    if text.is_empty() {
        return "_".to_owned();
    }
    text.chars()
        .take(TOKEN_BYTES_MAX)
        .map(|c| if c.is_ascii_alphanumeric() || c == '-' || c == '_' { c } else { '_' })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_never_break_a_subject() {
        assert_eq!(token("a.b *>c/d"), "a_b___c_d");
        assert_eq!(token(""), "_");
        assert_eq!(token(&"ä".repeat(500)).len(), 128);
    }

    #[test]
    fn every_shard_is_in_one_stream_and_streams_are_even() {
        for count in 1..=SHARD_COUNT {
            let mut shards = vec![0; usize::from(count)];
            for shard in 0..SHARD_COUNT {
                shards[usize::from(events_stream_index(count, shard))] += 1;
            }
            let (least, most) = (shards.iter().min().unwrap(), shards.iter().max().unwrap());
            assert!(*least > 0 && most - least <= 1, "{count}: {shards:?}");
        }
        assert_eq!(
            (events_stream(1, 0), events_stream(4, 3)),
            ("TAPIO_EVENTS".into(), "TAPIO_EVENTS_3".into())
        );
    }

    #[test]
    fn no_stream_keeps_first_words() {
        assert_eq!(news_subject("prod.eu"), "tapio.v1.news.prod_eu");
        let kept = [SUBJECTS_EVENTS, SUBJECTS_SIGNALS, SUBJECTS_INSIGHTS, SUBJECTS_DEADLETTER];
        let news = SUBJECTS_NEWS.trim_end_matches('>');
        assert!(news_subject("c").starts_with(news));
        assert!(kept.iter().all(|filter| !news.starts_with(filter.trim_end_matches('>'))));
    }

    #[test]
    fn insight_subject_has_five_tokens_after_the_prefix() {
        let entity = Entity::namespaced("Deployment", "shop", "api.v2");
        assert_eq!(
            insight_subject(Severity::Critical, "prod", &entity),
            "tapio.v1.insights.critical.prod.shop.Deployment.api_v2"
        );
    }
}
