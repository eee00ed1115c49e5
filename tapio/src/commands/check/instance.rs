//! What a running instance answers.

use tapio_runtime::clock::{Clock, SystemClock};
use tapio_schemas::finding::Status;
use tapio_schemas::{Finding, UnixNanos};

use super::About;
use crate::cli::CheckArgs;
use crate::client::{Client, Question};
use crate::verdict::{Answer, Known, RECOVERED_TOLD_FOR, judge};

/// Asks the instance.
pub async fn ask(args: &CheckArgs, about: &About) -> anyhow::Result<Answer> {
    let mut client = Client::connect(&args.client).await?;
    let mut known = known(&mut client, args.entity.as_deref().unwrap_or("")).await?;
    known.open.retain(|finding| about.is_of_namespace(finding));
    known.recovered.retain(|finding| about.is_of_namespace(finding));
    if let Some(query) = about.of_what_runs()
        && known.open.is_empty()
        && known.recovered.is_empty()
    {
        known.unheard = client.is_unheard(&query).await?.then(|| about.words());
    }
    Ok(judge(known))
}

/// The freshness of the first answer counts: what is judged up to there is in the ones that follow.
async fn known(client: &mut Client, entity: &str) -> anyhow::Result<Known> {
    let question =
        |status: Status, since| Question { entity, status: status.as_str(), since, with_prediction: false };
    let mut active = client.list(question(Status::Active, UnixNanos(0))).await?;
    let not_provable = client.list(question(Status::NotProvable, UnixNanos(0))).await?;
    let now = UnixNanos(SystemClock::new().now_unix_nanos());
    let since = now.minus(RECOVERED_TOLD_FOR.as_nanos() as u64);
    let recovered = client.list(question(Status::Recovered, since)).await?;
    active.findings.extend(not_provable.findings);
    Ok(Known {
        open: newest_revisions(active.findings),
        recovered: recovered.findings,
        clusters: active.clusters,
        gaps: active.gaps,
        unheard: None,
    })
}

/// A finding may change its status between two questions.
fn newest_revisions(mut findings: Vec<Finding>) -> Vec<Finding> {
    findings.sort_by_key(|finding| (finding.id, std::cmp::Reverse(finding.revision)));
    findings.dedup_by_key(|finding| finding.id);
    findings
}
