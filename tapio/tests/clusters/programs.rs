//! Programs that fail by themselves, by their image, their settings or their probes.

use serde_json::json;

use super::world::{World, app, of};
use super::{Expected, Scene, cause, recovered};

pub const SCENES: &[(&str, Scene, Expected)] = &[
    (
        "a StatefulSet's pod beyond its memory limit",
        out_of_memory,
        cause("memory.limit_exceeded", "StatefulSet", "harbour", "ledger"),
    ),
    (
        "a DaemonSet with a release that crashes",
        bad_release,
        cause("rollout.bad_image", "DaemonSet", "quay", "shipper"),
    ),
    ("a bare pod that ends with code 3", bare_pod, cause("code.crash_exit", "Pod", "quay", "toolbox")),
    (
        "a crash by a signal on one workload",
        segfault,
        cause("code.crash_signal", "Deployment", "harbour", "pilot"),
    ),
    (
        "a command that is not there",
        bad_command,
        cause("config.bad_command", "Deployment", "harbour", "pilot"),
    ),
    (
        "an image for another processor",
        wrong_platform,
        cause("config.bad_command", "Deployment", "harbour", "pilot"),
    ),
    (
        "a CronJob's image that nobody may pull",
        unauthorized,
        cause("image.unauthorized", "CronJob", "quay", "nightly"),
    ),
    ("a tag that does not exist", no_tag, cause("image.not_found", "StatefulSet", "harbour", "ledger")),
    (
        "a registry that does not answer",
        registry,
        cause("image.registry_unreachable", "Deployment", "harbour", "pilot"),
    ),
    (
        "a key that a Secret does not have",
        no_key,
        cause("config.missing_reference", "Deployment", "harbour", "pilot"),
    ),
    ("a volume's ConfigMap that is not there", no_volume, cause("config.missing_mount", "", "harbour", "")),
    (
        "settings changed, and what reads them crashes",
        settings,
        cause("config.changed", "ConfigMap", "harbour", "pilot-settings"),
    ),
    (
        "a password changed, and what reads it is refused",
        password,
        cause("credentials.rejected", "", "harbour", ""),
    ),
    (
        "a liveness probe for a page that is not there",
        wrong_probe,
        cause("probe.kills_healthy", "Deployment", "harbour", "pilot"),
    ),
    ("a program that hangs", hangs, cause("code.not_answering", "StatefulSet", "harbour", "ledger")),
    ("a Job over its deadline", slow_job, cause("code.job_too_slow", "", "quay", "")),
    (
        "a CronJob's Job that fails for good",
        failed_job,
        cause("code.crash_exit", "CronJob", "quay", "nightly"),
    ),
    ("a release taken back", taken_back, recovered()),
    ("a program that crashed and is well again", well_again, recovered()),
];

fn out_of_memory(w: &mut World) {
    let pods = w.workload("StatefulSet", "harbour", "ledger", 3);
    w.crashes(&pods[1], "OOMKilled", 137, 4, 20, 30);
}

fn bad_release(w: &mut World) {
    let pods = w.workload("DaemonSet", "quay", "shipper", 3);
    w.at(15).image("DaemonSet", "quay", "shipper", 2);
    w.at(18).delete(&pods[0]);
    let new = w.new_pod("quay", "shipper-c2v9m", "shipper", ("DaemonSet", "shipper"), "rack-a1");
    w.crashes(&new, "Error", 1, 4, 22, 25);
}

fn bare_pod(w: &mut World) {
    let pod = w.pod("quay", "toolbox", "toolbox", ("", ""), "rack-b1");
    w.crashes(&pod, "Error", 3, 5, 12, 20);
}

fn segfault(w: &mut World) {
    let pods = w.deployment("harbour", "pilot", 2);
    w.crashes(&pods[0], "Error", 139, 4, 20, 25);
}

fn start_error(w: &mut World, message: &str) {
    w.deployment("harbour", "pilot", 2);
    w.at(14).image("Deployment", "harbour", "pilot", 2);
    w.replica_set("harbour", "pilot", "7f6d5c4b8");
    let new =
        w.new_pod("harbour", "pilot-7f6d5c4b8-x2x2x", "pilot", ("ReplicaSet", "pilot-7f6d5c4b8"), "rack-c1");
    w.at(16).pod_waits(&new, "RunContainerError", message);
    w.warn_until(&new, "Failed", &format!("Error: {message}"), 20, 100);
}

fn bad_command(w: &mut World) {
    start_error(
        w,
        "failed to create containerd task: failed to create shim task: OCI runtime create failed: runc create failed: unable to start container process: exec: \"/srv/pilott\": stat /srv/pilott: no such file or directory",
    );
}

fn wrong_platform(w: &mut World) {
    start_error(w, "failed to create containerd task: failed to start: exec /srv/pilot: exec format error");
}

fn pull(w: &mut World, pod: &(String, String, String), message: &str) {
    w.at(16).pod_waits(pod, "ErrImagePull", message);
    w.warn(pod, "Failed", &format!("Failed to pull image: {message}"));
    w.at(30).pod_waits(pod, "ImagePullBackOff", "Back-off pulling image");
    w.warn_until(pod, "BackOff", "Back-off pulling image", 30, 110);
}

fn unauthorized(w: &mut World) {
    w.add(
        "CronJob",
        "quay",
        "nightly",
        json!({"spec": {"schedule": "7 * * * *", "jobTemplate": {"spec": {"template": {}}}}}),
    );
    let (_, pod) = w.at(12).job("quay", "nightly", "29930411", "rack-a1");
    pull(w, &pod, "failed to authorize: failed to fetch oauth token: unexpected status: 401 Unauthorized");
}

fn no_tag(w: &mut World) {
    let pods = w.workload("StatefulSet", "harbour", "ledger", 2);
    w.at(12).image("StatefulSet", "harbour", "ledger", 2);
    pull(
        w,
        &pods[1],
        "rpc error: code = NotFound desc = failed to resolve reference \"registry.example/ledger:2\": registry.example/ledger:2: not found",
    );
}

fn registry(w: &mut World) {
    let pods = w.deployment("harbour", "pilot", 2);
    let message = "failed to do request: Head \"https://registry.example/v2/pilot/manifests/1\": dial tcp: lookup registry.example: no such host";
    pull(w, &pods[0], message);
}

fn no_key(w: &mut World) {
    w.deployment("harbour", "pilot", 2);
    w.add("Secret", "harbour", "pilot-db", json!({"data": {"user": "aaaaaaaaaaaa"}}));
    let pod = w.at(12).next_pilot();
    w.pod_waits(&pod, "CreateContainerConfigError", "couldn't find key password in Secret harbour/pilot-db");
    w.warn_until(&pod, "Failed", "Error: couldn't find key password in Secret harbour/pilot-db", 15, 100);
}

fn no_volume(w: &mut World) {
    w.deployment("harbour", "pilot", 1);
    let pod = w.at(12).next_pilot();
    w.change(&pod, json!({"spec": {"volumes": [{"name": "charts", "configMap": {"name": "pilot-charts"}}]}}));
    w.pod_waits(&pod, "ContainerCreating", "");
    w.warn_until(
        &pod,
        "FailedMount",
        "MountVolume.SetUp failed for volume \"charts\" : configmap \"pilot-charts\" not found",
        16,
        110,
    );
}

fn settings(w: &mut World) {
    let key = w.add("ConfigMap", "harbour", "pilot-settings", json!({"data": {"berths": "one"}}));
    let pods = w.deployment("harbour", "pilot", 2);
    for pod in &pods {
        w.change(pod, json!({"spec": {"volumes": [{"name": "s", "configMap": {"name": "pilot-settings"}}]}}));
    }
    w.at(20).change(&key, json!({"data": {"berths": "two"}}));
    w.crashes(&pods[0], "Error", 2, 4, 40, 25);
}

fn password(w: &mut World) {
    let key = w.add("Secret", "harbour", "pilot-db", json!({"data": {"password": "aaaaaaaaaaaa"}}));
    let pods = w.deployment("harbour", "pilot", 1);
    w.change(&pods[0], json!({"spec": {"volumes": [{"name": "s", "secret": {"secretName": "pilot-db"}}]}}));
    w.at(20).change(&key, json!({"data": {"password": "bbbbbbbbbbbb"}}));
    let message = "Readiness probe failed: HTTP probe failed with statuscode: 503: FATAL: password authentication failed for user \"pilot\"";
    w.at(25).warn(&pods[0], "Unhealthy", message);
    w.at(35).unready(&pods[0]);
    w.warn_until(&pods[0], "Unhealthy", message, 10, 120);
}

fn wrong_probe(w: &mut World) {
    let pods = w.deployment("harbour", "pilot", 2);
    w.at(12).image("Deployment", "harbour", "pilot", 2);
    probe_kills(w, &pods[0], "Liveness probe failed: HTTP probe failed with statuscode: 404", 143);
}

fn hangs(w: &mut World) {
    let pods = w.workload("StatefulSet", "harbour", "ledger", 2);
    let message = "Liveness probe failed: Get \"http://10.8.1.4:8080/live\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)";
    probe_kills(w, &pods[0], message, 137);
}

fn probe_kills(w: &mut World, pod: &(String, String, String), message: &str, code: i64) {
    for round in 0..3 {
        let begin = 20 + round * 40;
        w.at(begin).warn_until(pod, "Unhealthy", message, 10, begin + 20);
        w.event(pod, "Normal", "Killing", "Container main failed liveness probe, will be restarted");
        w.crashes(pod, "Error", code, 1, begin + 25, 10);
    }
}

fn slow_job(w: &mut World) {
    w.add("CronJob", "quay", "nightly", json!({"spec": {"jobTemplate": {"spec": {"template": {}}}}}));
    let (job, pod) = w.job("quay", "nightly", "29930411", "rack-a1");
    w.at(60).condition(
        &job,
        "Failed",
        "True",
        "DeadlineExceeded",
        "Job was active longer than specified deadline",
    );
    w.warn(&job, "DeadlineExceeded", "Job was active longer than specified deadline");
    w.at(62).delete(&pod);
    w.at(100).warn(
        &of("Pod", "kube-system", "coredns-5d4c8f7b9-h2x4p"),
        "ProbeWarning",
        "readiness probe warning",
    );
}

fn failed_job(w: &mut World) {
    w.add("CronJob", "quay", "nightly", json!({"spec": {"jobTemplate": {"spec": {"template": {}}}}}));
    let (job, pod) = w.at(10).job("quay", "nightly", "29930411", "rack-a1");
    w.crashes(&pod, "Error", 4, 3, 20, 25);
    w.at(100).condition(
        &job,
        "Failed",
        "True",
        "BackoffLimitExceeded",
        "Job has reached the specified backoff limit",
    );
    w.warn(&job, "BackoffLimitExceeded", "Job has reached the specified backoff limit");
}

fn taken_back(w: &mut World) {
    w.deployment("harbour", "pilot", 2);
    w.at(12).image("Deployment", "harbour", "pilot", 2);
    let set = w.replica_set("harbour", "pilot", "7f6d5c4b8");
    let new =
        w.new_pod("harbour", "pilot-7f6d5c4b8-x2x2x", "pilot", ("ReplicaSet", "pilot-7f6d5c4b8"), "rack-c1");
    w.crashes(&new, "Error", 1, 3, 16, 20);
    w.at(90).image("Deployment", "harbour", "pilot", 1);
    w.delete(&new);
    w.delete(&set);
    quiet(w, 300);
}

fn well_again(w: &mut World) {
    let pods = w.deployment("harbour", "pilot", 2);
    w.crashes(&pods[0], "Error", 1, 3, 16, 20);
    w.at(85).ready(&pods[0]);
    quiet(w, 600);
}

/// Nothing of interest happens for a while.
pub fn quiet(w: &mut World, until: u64) {
    let key = w.add(
        "ConfigMap",
        "quay",
        "election",
        json!({"data": {"beat": "0"}, "metadata": {"labels": app("election")}}),
    );
    let mut second = 0;
    while second < until {
        second += 20;
        w.at(second).change(&key, json!({"metadata": {"annotations": {"beat": second.to_string()}}}));
    }
}
