//! Where a verdict is from and where its change goes: an instance watches what it watches, a change is made in the cluster
//! of the kubeconfig, and nothing in either says that they are the same.

use crate::verdict::Answer;

/// Both ends of a fix.
#[derive(Debug)]
pub struct Origin {
    /// Address of the instance that has the finding; nothing when the cluster's own lists have it.
    pub instance: Option<String>,
    /// The finding's cluster, as the instance names it.
    pub cluster: String,
    /// Server and context where the change is made.
    pub target: String,
}

impl Origin {
    /// Both, in words, when they may differ.
    pub fn told(&self) -> Option<String> {
        let Self { instance, cluster, target } = self;
        let instance = instance.as_ref()?;
        Some(format!(
            "found in cluster {cluster} by the instance at {instance}, changed in the cluster {target}"
        ))
    }

    /// Why nobody has said that they are the same; `vouched` is the cluster of the finding in the words of who asks.
    pub fn doubt(&self, vouched: Option<&str>) -> Option<String> {
        let Self { instance, cluster, target } = self;
        let instance = instance.as_ref().filter(|_| vouched != Some(cluster.as_str()))?;
        Some(format!(
            "the instance at {instance} found it in cluster {cluster}, and nothing says that this is the cluster {target}: \
             --yes alone does not do it, add --cluster {cluster} when it is, or --context to ask that cluster itself"
        ))
    }
}

/// Keeps what is of this cluster.
pub fn only(answer: &mut Answer, cluster: &str) {
    answer.findings.retain(|finding| finding.cluster == cluster);
    answer.recovered.retain(|finding| finding.cluster == cluster);
    answer.judge_again();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_needs_somebody_to_say_that_its_cluster_is_the_one_that_is_changed() {
        let target = "at http://10.0.0.1/ (context t)".to_owned();
        let of = |instance: Option<&str>| Origin {
            instance: instance.map(str::to_owned),
            cluster: "prod".to_owned(),
            target: target.clone(),
        };
        let (lists, instance) = (of(None), of(Some("127.0.0.1:50051")));
        assert_eq!((lists.told(), lists.doubt(None)), (None, None));
        for part in ["prod", "127.0.0.1:50051", "10.0.0.1", "context t"] {
            assert!(instance.told().unwrap().contains(part), "{part}");
            assert!(instance.doubt(Some("stage")).unwrap().contains(part), "{part}");
        }
        assert!(instance.doubt(None).is_some());
        assert_eq!(instance.doubt(Some("prod")), None);
    }
}
