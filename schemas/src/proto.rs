//! gRPC messages and services, generated from `proto/`.
#![allow(missing_docs, clippy::all, clippy::pedantic, rust_2018_idioms)]

/// Package `tapio.v1`.
pub mod v1 {
    tonic::include_proto!("tapio.v1");
}

/// Encoded `FileDescriptorSet` of all protos, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

impl From<&crate::Finding> for v1::Finding {
    fn from(finding: &crate::Finding) -> Self {
        let entity = finding.entity().cloned().unwrap_or_default();
        Self {
            id: finding.id.to_string(),
            revision: finding.revision,
            status: finding.status.to_string(),
            cluster: finding.cluster.to_string(),
            severity: finding.severity.to_string(),
            title: finding.title.clone(),
            story: finding.story.clone(),
            confidence: finding.confidence.get(),
            cause: finding.root_cause.as_ref().map(|r| r.cause.to_string()).unwrap_or_default(),
            entity_kind: entity.kind.to_string(),
            entity_namespace: entity.namespace.to_string(),
            entity_name: entity.name.to_string(),
            first_bad_at_unix_nano: finding.first_bad_at.0,
            updated_at_unix_nano: finding.updated_at.0,
            json: serde_json::to_string(finding).unwrap_or_default(),
        }
    }
}
