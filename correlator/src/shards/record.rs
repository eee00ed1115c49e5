//! What a shard keeps of an event: as little as the detectors of its kind need.

use std::sync::Arc;

use smol_str::{SmolStr, format_smolstr};
use tapio_schemas::entity::Entity;
use tapio_schemas::event::ArchivedTraceContext;
use tapio_schemas::kind::{ArchivedEventKind, ArchivedEventSeverity};
use tapio_schemas::payload::{
    ArchivedMetricData, ArchivedNetworkData, ArchivedPayload, ArchivedSpanData, Payload, SpanKind, SpanStatus,
};
use tapio_schemas::wire::{ArchivedStringIndex, EventView};
use tapio_schemas::{EntityRef, EventId, SpanId, TraceId, UnifiedEvent, UnixNanos};

use super::counters::Counters;
use super::entities::Known;
use super::faults;
use super::series::{Meter, row_of};
use super::texts::{TextId, Texts};

/// Attributes that tell drops apart, the most telling first; `device` is an older name of the interface.
const DROP_LABELS: [&str; 3] = ["reason", "network.interface.name", "device"];

/// Attributes by which file systems are told, the most telling first.
const DISK_LABELS: [&str; 10] = [
    "system.filesystem.mountpoint",
    "mountpoint",
    "k8s.persistentvolumeclaim.name",
    "persistentvolumeclaim",
    "k8s.volume.name",
    "volume",
    "system.device",
    "device",
    "name",
    "path",
];

/// Attributes that name a claim; with its namespace it is told as `namespace/name`.
const CLAIM_LABELS: [&str; 2] = ["k8s.persistentvolumeclaim.name", "persistentvolumeclaim"];

/// Attributes that tell certificates apart, the most telling first.
const CERTIFICATE_LABELS: [&str; 12] = [
    "name",
    "certificate",
    "secret_name",
    "http.url",
    "url.full",
    "target",
    "instance",
    "domain",
    "cn",
    "subject_CN",
    "filename",
    "filepath",
];

/// An event that waits for its turn.
#[derive(Debug)]
pub enum Record {
    /// A value of a watched series.
    Sample(Sample),
    /// A span.
    Span(SpanRecord),
    /// A log line of a span.
    Line(LineRecord),
    /// Anything that may be news, whole.
    Event(Box<EventRecord>),
}

/// An event that may be news.
#[derive(Debug)]
pub struct EventRecord {
    /// The event.
    pub event: UnifiedEvent,
    /// What its words say is wrong, when it is a log line whose words leave nothing open: read once.
    pub fault: Option<&'static str>,
}

/// A value of a watched series.
#[derive(Debug, Clone)]
pub struct Sample {
    /// Event time.
    pub at: UnixNanos,
    /// Event.
    pub id: EventId,
    /// Identity of entity, cgroup, metric and its text attributes.
    pub series: u128,
    /// Identity of entity and cgroup: series of one thing find each other by it.
    pub owner: u128,
    /// What is measured, and on what.
    pub entity: Arc<EntityRef>,
    /// Which measure.
    pub meter: Meter,
    /// Value in the meter's unit.
    pub value: f64,
    /// Its limit, zero for none.
    pub limit: f64,
    /// Observations behind it, of a histogram.
    pub count: u64,
    /// Which of the bounded measures it is.
    pub row: u8,
    /// Why or where: of drops the reason, else the interface; of disks the mount point, else the volume.
    pub label: SmolStr,
    /// Identity of what a file system or a bounded measure is of: parts and wholes of one thing find each other by it.
    pub place: u128,
}

/// A span, reduced.
#[derive(Debug, Clone)]
pub struct SpanRecord {
    /// End.
    pub at: UnixNanos,
    /// Event.
    pub id: EventId,
    /// Who made it.
    pub of: Arc<Known>,
    /// Trace.
    pub trace: TraceId,
    /// Span.
    pub span: SpanId,
    /// Parent, zero for a root.
    pub parent: SpanId,
    /// Kind.
    pub kind: SpanKind,
    /// Number of its name.
    pub operation: TextId,
    /// Number of it as a call that failed.
    pub failed_call: Option<TextId>,
    /// Whom it called, as the caller names it.
    pub peer: SmolStr,
    /// Duration, ns.
    pub duration_ns: u64,
    /// HTTP status, zero for none.
    pub http_status: u16,
    /// Set when the span failed.
    pub failure: Option<Failure>,
}

impl SpanRecord {
    /// It waits for somebody else.
    pub fn is_call(&self) -> bool {
        matches!(self.kind, SpanKind::Client | SpanKind::Producer)
    }
}

/// A log line of a span, reduced.
#[derive(Debug, Clone, Copy)]
pub struct LineRecord {
    /// Event time.
    pub at: UnixNanos,
    /// Trace.
    pub trace: TraceId,
    /// Span.
    pub span: SpanId,
    /// Number of its template.
    pub template: TextId,
}

/// How a span failed.
#[derive(Debug, Clone, Default)]
pub struct Failure {
    /// It waited in vain.
    pub timeout: bool,
    /// Name of the span.
    pub operation: SmolStr,
    /// `error.type` or `exception.type`.
    pub error_type: SmolStr,
    /// Message of the exception or of the status.
    pub message: SmolStr,
}

/// A client that gives up after this long and calls it an error has waited in vain, whatever it calls it.
const TIMEOUT_DURATION_NS: u64 = 5_000_000_000;

/// What to do with an event, decided in place.
pub enum Triage<'a> {
    /// It waits for its turn.
    Keep(Record),
    /// Only where it was seen counts (topology).
    Sighting,
    /// Where it was seen, and whom it reached.
    Connection(&'a ArchivedNetworkData),
}

/// Decides in place; copies only what is kept.
pub fn triage<'a>(
    view: &EventView<'a>,
    of: &Arc<Known>,
    texts: &mut Texts,
    counters: &mut Counters,
) -> Triage<'a> {
    let (entity, owner) = (&of.entity, of.owner);
    match (&view.event.kind, &view.event.payload) {
        (ArchivedEventKind::Metric | ArchivedEventKind::CgroupSample, ArchivedPayload::Metric(metric)) => {
            match sample(view, metric, entity, owner) {
                Some(sample) => Triage::Keep(Record::Sample(sample)),
                None => Triage::Sighting,
            }
        }
        (ArchivedEventKind::Span, ArchivedPayload::Span(span)) => {
            let operation = texts.operation(of, view.text(&span.name), view.timestamp(), counters);
            let mut record = span_record(view, span, of, operation);
            if record.failure.is_some() && record.is_call() {
                record.failed_call = Some(texts.failed_call(of, operation, record.at, counters));
            }
            Triage::Keep(Record::Span(record))
        }
        (ArchivedEventKind::Log, payload) => log(view, payload, of, texts, counters),
        (ArchivedEventKind::NetConnect, ArchivedPayload::Network(data)) => Triage::Connection(data),
        // A connection that was given up by the kernel is closed with an errno.
        (ArchivedEventKind::NetClose, ArchivedPayload::Network(data)) if data.errno.to_native() == 0 => {
            Triage::Sighting
        }
        (
            ArchivedEventKind::ProcessExec
            | ArchivedEventKind::NetAccept
            | ArchivedEventKind::NetConnectAborted,
            _,
        ) => Triage::Sighting,
        (ArchivedEventKind::ProcessExit, ArchivedPayload::Kernel(exit))
            if exit.exit_code.to_native() == 0 && exit.signal.to_native() == 0 =>
        {
            Triage::Sighting
        }
        _ => whole(view, entity, None),
    }
}

fn whole<'a>(view: &EventView<'_>, entity: &Arc<EntityRef>, fault: Option<&'static str>) -> Triage<'a> {
    Triage::Keep(Record::Event(Box::new(EventRecord { event: view.to_owned_with(entity), fault })))
}

/// An error, and a warning whose words say by themselves what is wrong (the kernel warns where programs would call it an
/// error), may be news; of other lines counts to which span they belong.
fn log<'a>(
    view: &EventView<'a>,
    payload: &ArchivedPayload,
    of: &Arc<Known>,
    texts: &mut Texts,
    counters: &mut Counters,
) -> Triage<'a> {
    let severity = view.event.severity;
    let fault = match payload {
        ArchivedPayload::Log(log) if severity >= ArchivedEventSeverity::Warning => {
            faults::of_log(&of.entity, view.text(&log.body))
        }
        _ => None,
    };
    if severity >= ArchivedEventSeverity::Error || fault.is_some() {
        return whole(view, &of.entity, fault);
    }
    match (payload, span_of(view)) {
        (ArchivedPayload::Log(log), Some((trace, span))) => {
            let at = view.timestamp();
            let template = texts.line(of, view.text(&log.body), false, at, counters);
            Triage::Keep(Record::Line(LineRecord { at, trace, span, template }))
        }
        _ => Triage::Sighting,
    }
}

/// The span that an event belongs to.
fn span_of(view: &EventView<'_>) -> Option<(TraceId, SpanId)> {
    let trace: &ArchivedTraceContext = view.event.trace.as_deref()?;
    let key = (TraceId(trace.trace_id.0.to_native()), SpanId(trace.span_id.0.to_native()));
    (key.0.0 != 0 && key.1.0 != 0).then_some(key)
}

/// The line of an event that is kept whole, when it is a log line of a span.
pub fn line_of(
    event: &UnifiedEvent,
    of: &Known,
    texts: &mut Texts,
    counters: &mut Counters,
) -> Option<LineRecord> {
    let (Payload::Log(log), Some(trace)) = (&event.payload, &event.trace) else { return None };
    let (trace, span, at) = (trace.trace_id, trace.span_id, event.timestamp);
    if trace.0 == 0 || span.0 == 0 {
        return None;
    }
    let template = texts.line(of, &log.body, true, at, counters);
    Some(LineRecord { at, trace, span, template })
}

fn text(view: &EventView<'_>, index: &ArchivedStringIndex) -> SmolStr {
    SmolStr::new(view.text(index))
}

fn sample(
    view: &EventView<'_>,
    metric: &ArchivedMetricData,
    entity: &Arc<EntityRef>,
    owner: u128,
) -> Option<Sample> {
    let attribute = |key: &str| {
        metric.attributes.iter().find(|a| view.text(&a.key) == key).and_then(|a| match &a.value {
            tapio_schemas::attribute::ArchivedAttributeValue::Text(index) => Some(view.text(index)),
            _ => None,
        })
    };
    let meter = Meter::of(view.text(&metric.name), attribute)?;
    let value = metric.value.to_native();
    if !value.is_finite() {
        return None;
    }
    let first = |keys: &[&str]| {
        keys.iter().find_map(|key| attribute(key)).map_or_else(SmolStr::default, SmolStr::new)
    };
    let label = match meter {
        Meter::NetDrops => first(&DROP_LABELS),
        Meter::CertificateEnd | Meter::CertificateLeft => first(&CERTIFICATE_LABELS),
        meter if meter.is_of_a_disk() || meter == Meter::Bounded => {
            let namespace = first(&["k8s.namespace.name", "namespace"]);
            match first(&CLAIM_LABELS) {
                claim if !claim.is_empty() && !namespace.is_empty() => format_smolstr!("{namespace}/{claim}"),
                _ => first(&DISK_LABELS),
            }
        }
        Meter::ComponentFailing | Meter::QueueDepth | Meter::DnsBroken => first(&["which"]),
        _ => SmolStr::default(),
    };
    Some(Sample {
        at: view.timestamp(),
        id: EventId(view.event.id.0.to_native()),
        series: series_identity(view, metric, owner),
        owner,
        entity: Arc::clone(entity),
        meter,
        value,
        limit: metric.limit.to_native(),
        count: metric.count.to_native(),
        row: if meter == Meter::Bounded { row_of(view.text(&metric.name)) } else { u8::MAX },
        label,
        place: if meter.is_of_a_disk() || meter == Meter::Bounded { place(view, metric, owner) } else { 0 },
    })
}

/// Attributes that tell the parts of one file system apart: used, free, reserved.
const PART_LABELS: [&str; 2] = ["state", "system.filesystem.state"];

/// Owner and the texts that say what a file system or a volume is, in any order and under any name: exporters name the same
/// mount point differently, and claims of two namespaces may have one name.
fn place(view: &EventView<'_>, metric: &ArchivedMetricData, owner: u128) -> u128 {
    metric.attributes.iter().fold(owner, |place, attribute| match &attribute.value {
        tapio_schemas::attribute::ArchivedAttributeValue::Text(value)
            if !PART_LABELS.contains(&view.text(&attribute.key)) =>
        {
            place.wrapping_add(hash_parts(&[view.text(value)]))
        }
        _ => place,
    })
}

/// Owner, metric and the texts that tell its series apart (a mount point, a device): two names of nearly the same measure
/// are two series, or their values would alternate.
fn series_identity(view: &EventView<'_>, metric: &ArchivedMetricData, owner: u128) -> u128 {
    let mut hash = xxhash_rust::xxh3::Xxh3::new();
    hash.update(&owner.to_le_bytes());
    hash.update(view.text(&metric.name).as_bytes());
    for attribute in metric.attributes.iter() {
        if let tapio_schemas::attribute::ArchivedAttributeValue::Text(value) = &attribute.value {
            for part in [view.text(&attribute.key), view.text(value)] {
                hash.update(&(part.len() as u32).to_le_bytes());
                hash.update(part.as_bytes());
            }
        }
    }
    hash.digest128()
}

fn span_record(
    view: &EventView<'_>,
    span: &ArchivedSpanData,
    of: &Arc<Known>,
    operation: TextId,
) -> SpanRecord {
    use tapio_schemas::payload::{ArchivedSpanKind, ArchivedSpanStatus};
    let kind = match span.kind {
        ArchivedSpanKind::Unspecified => SpanKind::Unspecified,
        ArchivedSpanKind::Internal => SpanKind::Internal,
        ArchivedSpanKind::Server => SpanKind::Server,
        ArchivedSpanKind::Client => SpanKind::Client,
        ArchivedSpanKind::Producer => SpanKind::Producer,
        ArchivedSpanKind::Consumer => SpanKind::Consumer,
    };
    let status = match span.status {
        ArchivedSpanStatus::Unset => SpanStatus::Unset,
        ArchivedSpanStatus::Ok => SpanStatus::Ok,
        ArchivedSpanStatus::Error => SpanStatus::Error,
    };
    let http_status = span.http_status.to_native();
    let duration_ns = span.duration_ns.to_native();
    let failed = status == SpanStatus::Error || http_status >= 500;
    let failure = failed.then(|| {
        let texts = [&span.error_type, &span.error_message, &span.status_message].map(|i| view.text(i));
        let message = if texts[1].is_empty() { texts[2] } else { texts[1] };
        Failure {
            timeout: http_status == 504
                || duration_ns >= TIMEOUT_DURATION_NS && status == SpanStatus::Error
                || texts.iter().any(|t| says_timeout(t)),
            operation: text(view, &span.name),
            error_type: SmolStr::new(texts[0]),
            message: cut(message),
        }
    });
    let trace: Option<&ArchivedTraceContext> = view.event.trace.as_deref();
    SpanRecord {
        at: view.timestamp(),
        id: EventId(view.event.id.0.to_native()),
        of: Arc::clone(of),
        trace: TraceId(trace.map_or(0, |t| t.trace_id.0.to_native())),
        span: SpanId(trace.map_or(0, |t| t.span_id.0.to_native())),
        parent: SpanId(trace.map_or(0, |t| t.parent_span_id.0.to_native())),
        kind,
        operation,
        failed_call: None,
        peer: text(view, &span.peer),
        duration_ns,
        http_status,
        failure,
    }
}

/// True for the words that clients use when they have waited in vain.
pub fn says_timeout(text: &str) -> bool {
    const WORDS: [&str; 5] = ["timeout", "timed out", "time out", "deadline exceeded", "deadline_exceeded"];
    if text.is_empty() {
        return false;
    }
    let lower = text.to_lowercase();
    WORDS.iter().any(|word| lower.contains(word))
}

/// Messages are kept to this length.
const MESSAGE_BYTES_MAX: usize = 240;

/// Cuts a message to a length that stories can use, at a character; `…` says that it goes on.
pub fn cut(text: &str) -> SmolStr {
    if text.len() <= MESSAGE_BYTES_MAX {
        return SmolStr::new(text);
    }
    let end = text.floor_char_boundary(MESSAGE_BYTES_MAX - "…".len());
    format_smolstr!("{}…", &text[..end])
}

/// Identity of the thing an entity reference names, for series: its subject and its cgroup.
pub fn owner_identity(entity: &EntityRef) -> u128 {
    let subject = entity.subject();
    hash_parts(&[
        &entity.cluster,
        &subject.kind,
        &subject.namespace,
        &subject.name,
        &subject.node,
        &entity.cgroup,
    ])
}

/// Identity of a node of the entity graph.
pub fn entity_identity(entity: &Entity) -> u128 {
    hash_parts(&[&entity.kind, &entity.namespace, &entity.name, &entity.node])
}

/// Hash of texts that cannot run into each other.
pub fn hash_parts(parts: &[&str]) -> u128 {
    let mut hash = xxhash_rust::xxh3::Xxh3::new();
    for part in parts {
        hash.update(&(part.len() as u32).to_le_bytes());
        hash.update(part.as_bytes());
    }
    hash.digest128()
}

#[cfg(test)]
mod tests {
    use super::cut;

    #[test]
    fn a_message_that_goes_on_says_so() {
        let short = "é".repeat(120);
        assert_eq!(cut(&short), short);
        let long = cut(&"é".repeat(121));
        assert!(long.len() <= 240 && long.ends_with("é…"), "{long}");
    }
}
