//! The operator from reading to writing, over an API server in memory.
#![allow(clippy::unwrap_used, reason = "tests")]

mod api_server;
mod election;
mod operator;

use std::collections::BTreeSet;

use api_server::Fault;
use operator::{World, condition};
use proptest::prelude::*;
use serde_json::{Value, json};
use tiderace_operator::rbac;

const JOBS: &str = "streamingjobs.tiderace";

impl Fault {
    fn is_death(&self) -> bool {
        matches!(self, Self::DiesBefore(_) | Self::DiesAfter(_))
    }
}

/// Created, suspended, resumed, changed, finished with, deleted: every kind of operation but those of volumes.
async fn life(world: &mut World) {
    world.change(json!({}));
    world.until_ready("Running").await;
    world.change(json!({"state": "Suspended"}));
    world.until_ready("Suspended").await;
    world.change(json!({"state": "Running"}));
    world.until_ready("Running").await;
    world.change(json!({"sql": {"inline": "SELECT 2"}}));
    world.until_ready("Running").await;
    world.server.delete(JOBS, "orders");
    world.until("gone", |server| server.get(JOBS, "orders").is_none()).await;
}

fn check_end(world: &World, what: &str) {
    let state = world.server.state();
    let left: Vec<_> = state.objects.keys().filter(|k| k.0 != "events").collect();
    assert!(left.is_empty(), "{what}: left behind: {left:?}");
    let mut epochs = state.epochs.clone();
    assert!(epochs.is_sorted(), "{what}: an old epoch was started again: {epochs:?}");
    epochs.dedup();
    assert!(epochs.len() >= 3, "{what}: {epochs:?}");
}

#[tokio::test]
async fn a_job_lives_and_leaves_nothing_behind() {
    let mut world = World::new();
    life(&mut world).await;
    check_end(&world, "undisturbed");
    assert_eq!(world.server.state().epochs, [1, 2, 3]);
}

/// The numbers of the calls of an undisturbed life that write, and of one in ten of those that read.
async fn calls_of_a_life() -> (Vec<usize>, Vec<usize>) {
    let mut world = World::new();
    life(&mut world).await;
    let state = world.server.state();
    assert_eq!(state.calls, state.asked.len());
    let (reads, writes): (Vec<_>, Vec<_>) = (1..=state.calls).partition(|k| matches!(state.asked[k - 1].verb, "get" | "list"));
    assert!(writes.len() > 30, "{} writes", writes.len());
    (writes, reads.into_iter().step_by(10).collect())
}

/// The operator's process dies before or after each of its writes, and another takes over from what the API server has. To die at a read is to die
/// after the write before it.
#[tokio::test]
async fn an_operator_may_die_at_any_call() {
    let (writes, _) = calls_of_a_life().await;
    for k in writes {
        for fault in [Fault::DiesBefore(k), Fault::DiesAfter(k)] {
            let mut world = World::new();
            world.server.state().fault = fault.clone();
            life(&mut world).await;
            check_end(&world, &format!("{fault:?}"));
        }
    }
}

/// Any write fails once, with a conflict or an error of the server; so do some reads.
#[tokio::test]
async fn a_failed_call_is_made_again() {
    let (writes, reads) = calls_of_a_life().await;
    let faults = writes.into_iter().flat_map(|k| [(k, 409), (k, 500)]).chain(reads.into_iter().map(|k| (k, 500)));
    for (k, code) in faults {
        let mut world = World::new();
        world.server.state().fault = Fault::Answers(k, code);
        life(&mut world).await;
        check_end(&world, &format!("call {k} answered {code}"));
    }
}

#[tokio::test]
async fn what_the_api_server_forbids_is_said_and_mended() {
    for (resource, verb, word) in [
        ("networkpolicies", "patch", "NetworkPolicy"),
        ("services", "patch", "Service"),
        ("secrets", "patch", "Secret"),
        ("statefulsets", "create", "StatefulSet"),
        ("jobs", "create", "Job"),
    ] {
        let mut world = World::new();
        world.server.state().fault = Fault::Always(resource, verb, 403);
        world.change(json!({}));
        world
            .until(&format!("{resource} are forbidden"), |server| {
                let job = server.get(JOBS, "orders").unwrap();
                let stalled = condition(&job, "Stalled");
                stalled["reason"] == "ApplyFailed" && stalled["message"].as_str().unwrap_or_default().contains(word)
            })
            .await;
        world.server.state().fault = Fault::None;
        world.until_ready("Running").await;
    }
}

#[tokio::test]
async fn a_plan_that_can_not_be_run_is_said_with_its_place() {
    let mut world = World::new();
    world.server.state().plan_is_good = false;
    world.change(json!({}));
    world.until("refused", |server| condition(&server.get(JOBS, "orders").unwrap(), "PlanValid")["status"] == "False").await;
    let job = world.server.get(JOBS, "orders").unwrap();
    let message = condition(&job, "PlanValid")["message"].as_str().unwrap().to_owned();
    assert!(message.contains("TR-1002 (line 2, column 8)"), "{message}");
    assert!(world.server.names("statefulsets.apps").is_empty());
    for _ in 0..3 {
        world.pass().await.unwrap();
    }
    assert!(world.server.names("jobs.batch").is_empty(), "the check is taken away");
}

/// Somebody else's objects by the names that the job would use are left alone, and said.
#[tokio::test]
async fn objects_of_others_are_not_touched() {
    let mut world = World::new();
    let theirs = json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "orders"}, "spec": {"replicas": 5}});
    world.server.apply("statefulsets.apps", theirs);
    world.change(json!({}));
    world
        .until("a conflict of names", |server| {
            condition(&server.get(JOBS, "orders").unwrap(), "Stalled")["reason"] == "NameConflict"
        })
        .await;
    assert_eq!(world.server.get("statefulsets.apps", "orders").unwrap()["spec"]["replicas"], 5);
    world.server.delete("statefulsets.apps", "orders");
    world.until_ready("Running").await;
}

/// Nor are they when the job is deleted; and a Secret or an account that the job would use is no less somebody's than a StatefulSet.
#[tokio::test]
async fn objects_of_others_outlive_the_job() {
    for (plural, object) in [
        (
            "statefulsets.apps",
            json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "orders"}, "spec": {"replicas": 5}}),
        ),
        (
            "secrets",
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "orders-ca"}, "data": {"ca.crt": "bWluZQ=="}}),
        ),
        (
            "secrets",
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "orders-worker-tls"}, "data": {"a": "bWluZQ=="}}),
        ),
        ("serviceaccounts", json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "orders"}})),
        (
            "services",
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "orders-api"}, "spec": {"selector": {"a": "b"}}}),
        ),
    ] {
        let mut world = World::new();
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        world.server.apply(plural, object);
        let theirs = world.server.get(plural, &name).unwrap();
        world.change(json!({"storage": {"size": "1Gi", "retention": "Delete"}}));
        world
            .until("a conflict of names", |server| {
                let stalled = condition(&server.get(JOBS, "orders").unwrap(), "Stalled");
                stalled["reason"] == "NameConflict" && stalled["message"].as_str().unwrap().contains(&name)
            })
            .await;
        for _ in 0..10 {
            let _shown = world.pass().await;
            world.server.live();
        }
        world.server.delete(JOBS, "orders");
        world.until("gone", |server| server.get(JOBS, "orders").is_none()).await;
        assert_eq!(world.server.get(plural, &name), Some(theirs), "{plural} {name}");
    }
}

/// What the API server refuses is said as long as it does: the job doesn't look by turns as if it were under way.
#[tokio::test]
async fn a_refusal_is_said_without_a_break() {
    let mut world = World::new();
    world.server.state().fault = Fault::Always("podmonitors", "patch", 404);
    world.change(json!({"monitoring": {"podMonitor": true}}));
    let reason = |world: &World| condition(&world.server.get(JOBS, "orders").unwrap(), "Stalled")["reason"].clone();
    world.until("refused", |server| condition(&server.get(JOBS, "orders").unwrap(), "Stalled")["reason"] == "ApplyFailed").await;
    for _ in 0..20 {
        let _refused = world.pass().await;
        world.server.live();
        assert_eq!(reason(&world), "ApplyFailed");
    }
    world.server.state().fault = Fault::None;
    world.until_ready("Running").await;
}

/// A mistake that ends the pass of a job ends neither the process nor the next pass.
#[tokio::test]
async fn a_pass_that_panics_is_only_a_failed_pass() {
    let mut world = World::new();
    world.change(json!({}));
    world.until_ready("Running").await;
    world.server.state().worker = "Panics";
    world.mark_changed();
    let error = world.pass().await.unwrap_err().to_string();
    assert!(error.contains("a mistake made on purpose"), "{error}");
    // The test's API server was locked when it happened.
    world.server.forgive();
    world.server.state().worker = "Running";
    world.until_ready("Running").await;
}

/// A backup that knows no status, or a person who takes it away: the worker that runs is drained, and no epoch is given twice.
#[tokio::test]
async fn a_lost_status_gives_no_epoch_twice() {
    let mut world = World::new();
    world.change(json!({}));
    world.until_ready("Running").await;
    world.change(json!({"sql": {"inline": "SELECT 2"}}));
    world.until_ready("Running").await;
    let key = (JOBS.to_owned(), "shop".to_owned(), "orders".to_owned());
    world.server.state().objects.get_mut(&key).unwrap()["status"] = Value::Null;
    world.restart();
    world.until_ready("Running").await;
    assert_eq!(world.server.state().epochs, [1, 2, 3]);
    assert_eq!(world.server.get(JOBS, "orders").unwrap()["status"]["epoch"], 3);
}

/// Parts of a status that somebody has edited belong to them, and an apply doesn't take them away.
#[tokio::test]
async fn an_edited_status_is_put_right() {
    for edited in [
        json!({"operation": {"id": "x", "type": "Suspend", "step": "Starting", "targetGeneration": 1, "fromEpoch": 0, "toEpoch": 0,
            "startedAt": "2026-11-21T12:00:00Z", "stepAt": "2026-11-21T12:00:00Z"}}),
        json!({"deployed": {"startedAt": "9999-12-30T20:00:00Z"}}),
        json!({"outcome": {"kind": "Finished", "at": "2026-11-21T12:00:00Z", "generation": 1, "reason": "Finished", "message": "by hand"}}),
    ] {
        let mut world = World::new();
        world.change(json!({"activeDeadlineSeconds": 315_360_000}));
        world.until_ready("Running").await;
        let mut job = world.server.get(JOBS, "orders").unwrap();
        for (field, value) in edited.as_object().unwrap() {
            for (inner, value) in value.as_object().unwrap() {
                job["status"][field][inner] = value.clone();
            }
        }
        world.server.state().edited = edited.clone();
        world.server.apply(JOBS, job);
        for _ in 0..20 {
            let _shown = world.pass().await;
            world.server.live();
        }
        let job = world.server.get(JOBS, "orders").unwrap();
        let is_said = condition(&job, "Ready")["observedGeneration"] == job["metadata"]["generation"];
        assert!(is_said && job["status"]["operation"].is_null(), "{edited}: {job:#}");
        world.change(json!({"sql": {"inline": "SELECT 2"}}));
        world.until_ready("Running").await;
    }
}

/// Conditions of others stay, and cost no write.
#[tokio::test]
async fn conditions_of_others_are_left_alone() {
    let mut world = World::new();
    world.change(json!({}));
    world.until_ready("Running").await;
    let mut job = world.server.get(JOBS, "orders").unwrap();
    let theirs = json!({"type": "Audited", "status": "True", "reason": "Yes", "message": "", "lastTransitionTime": "2026-11-21T12:00:00Z"});
    job["status"]["conditions"].as_array_mut().unwrap().push(theirs);
    world.server.apply(JOBS, job);
    for _ in 0..3 {
        world.pass().await.unwrap();
    }
    let before = world.server.get(JOBS, "orders");
    world.pass().await.unwrap();
    assert_eq!(world.server.get(JOBS, "orders"), before);
    assert_eq!(condition(&before.unwrap(), "Audited")["status"], "True");
}

/// Pods that carry the job's labels and aren't its workers hold nothing up; a worker that lost them is told, and goes when it must.
#[tokio::test]
async fn pods_are_known_by_name_and_labels() {
    let mut world = World::new();
    world.change(json!({}));
    world.until_ready("Running").await;
    let mut copy = world.server.get("pods", "orders-0").unwrap();
    copy["metadata"] =
        json!({"name": "orders-debug", "labels": {"app.kubernetes.io/name": "streamingjob", "tiderace.dev/job": "orders"}});
    world.server.apply("pods", copy);
    world.change(json!({"state": "Suspended"}));
    world.until_ready("Suspended").await;
    assert_eq!(world.server.names("pods"), ["orders-debug"]);
    world.change(json!({"state": "Running"}));
    world.until_ready("Running").await;

    let mut worker = world.server.get("pods", "orders-0").unwrap();
    worker["metadata"]["labels"].as_object_mut().unwrap().remove("tiderace.dev/job");
    worker["metadata"]["ownerReferences"] = json!([]);
    world.server.apply("pods", worker);
    world.mark_changed();
    world
        .until("told", |server| {
            let stalled = condition(&server.get(JOBS, "orders").unwrap(), "Stalled");
            stalled["reason"] == "NameConflict" && stalled["message"].as_str().unwrap().contains("has lost the labels")
        })
        .await;
    world.change(json!({"state": "Suspended"}));
    world.until_ready("Suspended").await;
    assert_eq!(world.server.names("pods"), ["orders-debug"], "a worker that nobody knows runs on");
}

/// A field of the StatefulSet's template that somebody took is taken back, without a restart; and what was created becomes what is applied.
#[tokio::test]
async fn a_changed_stateful_set_is_put_right() {
    let mut world = World::new();
    world.change(json!({}));
    world.until_ready("Running").await;
    let pod = world.server.get("pods", "orders-0").unwrap();
    let entry = |manager: &str, fields: Value| json!({"manager": manager, "operation": "Update", "apiVersion": "apps/v1", "fieldsV1": fields});
    let ours = entry("tiderace-operator", json!({"f:spec": {}}));
    let mut set = world.server.get("statefulsets.apps", "orders").unwrap();
    set["metadata"]["managedFields"] = json!([ours]);
    world.server.apply("statefulsets.apps", set.clone());
    for _ in 0..3 {
        world.pass().await.unwrap();
    }
    set["spec"]["template"]["spec"]["containers"][0]["image"] = json!("evil:1");
    let theirs = json!({"f:spec": {"f:template": {"f:spec": {"f:containers": {"k:{\"name\":\"worker\"}": {"f:image": {}}}}}}});
    set["metadata"]["managedFields"] = json!([ours, entry("kubectl-set", theirs)]);
    world.server.apply("statefulsets.apps", set);
    world.restart();
    world.mark_changed();
    world
        .until("put right", |server| {
            let set = server.get("statefulsets.apps", "orders").unwrap();
            set.pointer("/spec/template/spec/containers/0/image") == Some(&json!("tiderace:1"))
        })
        .await;
    world.until_ready("Running").await;
    assert_eq!(world.server.get("pods", "orders-0").unwrap(), pod);
}

/// A steady job costs no write.
#[tokio::test]
async fn a_steady_job_is_not_written_to() {
    let mut world = World::new();
    world.change(json!({}));
    world.until_ready("Running").await;
    for _ in 0..3 {
        world.pass().await.unwrap();
    }
    let before = world.server.state().asked.len();
    for _ in 0..50 {
        world.pass().await.unwrap();
    }
    let writes: Vec<_> =
        world.server.state().asked[before..].iter().filter(|a| !matches!(a.verb, "get" | "list")).cloned().collect();
    assert!(writes.is_empty(), "{writes:?}");
}

/// A job that runs and of which nothing is reported costs the API server nothing, until something is.
#[tokio::test]
async fn a_quiet_job_is_only_glanced_at() {
    let mut world = World::new();
    world.change(json!({}));
    world.until_ready("Running").await;
    world.restart_with_interval(std::time::Duration::from_secs(3600));
    world.clock.fetch_add(120_000, std::sync::atomic::Ordering::SeqCst);
    for _ in 0..3 {
        world.pass().await.unwrap();
    }
    let before = world.server.state().calls;
    for _ in 0..50 {
        world.pass().await.unwrap();
    }
    assert_eq!(world.server.state().calls, before);
    world.mark_changed();
    world.pass().await.unwrap();
    assert!(world.server.state().calls > before, "a change is looked at");
    world.pass().await.unwrap();
    world.server.state().worker = "Finished";
    world.until_ready("Finished").await;
}

/// Whatever a job owns comes back with the pass after somebody deleted it; its worker is not touched.
#[tokio::test]
async fn what_somebody_deleted_comes_back() {
    let mut world = World::new();
    world.change(json!({"monitoring": {"podMonitor": true}}));
    world.until_ready("Running").await;
    for _ in 0..3 {
        world.pass().await.unwrap();
    }
    let pod = world.server.get("pods", "orders-0").unwrap();
    let mut kinds = 0;
    let owned: Vec<_> = world.server.state().objects.keys().filter(|k| k.0 != JOBS && k.0 != "pods").cloned().collect();
    for key in owned {
        if key.0 == "statefulsets.apps" || key.0 == "persistentvolumeclaims" {
            continue; // their loss takes pods and data with it: operations of their own
        }
        kinds += 1;
        world.server.delete(&key.0, &key.2);
        world.mark_changed();
        for _ in 0..2 {
            world.pass().await.unwrap();
        }
        assert!(world.server.get(&key.0, &key.2).is_some(), "{key:?} is not made again");
    }
    assert!(kinds >= 8, "{kinds} objects");
    assert_eq!(world.server.get("pods", "orders-0").unwrap(), pod);
}

/// Statements in a user's ConfigMap: its change is noticed by the glance at a quiet job.
#[tokio::test]
async fn changed_statements_in_a_config_map_are_noticed() {
    let mut world = World::new();
    let map =
        |text: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "sql"}, "data": {"job.sql": text}});
    world.server.apply("configmaps", map("SELECT 1"));
    world.change(json!({"sql": {"configMapKeyRef": {"name": "sql", "key": "job.sql"}}}));
    world.until_ready("Running").await;
    world.restart_with_interval(std::time::Duration::from_secs(3600));
    world.clock.fetch_add(120_000, std::sync::atomic::Ordering::SeqCst);
    for _ in 0..5 {
        world.pass().await.unwrap();
    }
    let before = world.server.state().calls;
    world.pass().await.unwrap();
    assert_eq!(world.server.state().calls, before + 1, "a glance asks for the ConfigMap alone");
    world.server.apply("configmaps", map("SELECT 2"));
    world
        .until("started anew", |server| {
            server.get("pods", "orders-0").is_some_and(|p| p["metadata"]["labels"]["tiderace.dev/epoch"] == "2")
        })
        .await;
    world.until_ready("Running").await;
}

/// A status of a new operator says the same of a job that runs, and touches nothing: upgrades restart no pod.
#[tokio::test]
async fn a_new_operator_touches_nothing() {
    let mut world = World::new();
    world.change(json!({}));
    world.until_ready("Running").await;
    for _ in 0..3 {
        world.pass().await.unwrap();
    }
    let before = world.server.state().objects.clone();
    world.restart();
    for _ in 0..5 {
        world.pass().await.unwrap();
    }
    assert_eq!(world.server.state().objects, before);
}

/// Certificates that are due are renewed while the job runs on.
#[tokio::test]
async fn certificates_are_renewed_and_the_worker_runs_on() {
    let mut world = World::new();
    world.change(json!({}));
    world.until_ready("Running").await;
    let (pod, secret) = (world.server.get("pods", "orders-0"), world.server.get("secrets", "orders-worker-tls").unwrap());
    world.clock.fetch_add(61 * 86_400_000, std::sync::atomic::Ordering::SeqCst);
    for _ in 0..3 {
        world.pass().await.unwrap();
    }
    assert_ne!(world.server.get("secrets", "orders-worker-tls").unwrap()["data"]["tls.crt"], secret["data"]["tls.crt"]);
    assert_eq!(world.server.get("secrets", "orders-worker-tls").unwrap()["data"]["ca.crt"], secret["data"]["ca.crt"]);
    assert_eq!(world.server.get("pods", "orders-0"), pod);
}

/// Every verb that the operator uses is in the table that its roles are made from.
#[tokio::test]
async fn rights_cover_what_is_asked() {
    let mut world = World::new();
    let sql = json!({"inline": "SELECT 1", "secretRefs": {"pw": {"name": "cred", "key": "password"}}});
    world.server.apply(
        "secrets",
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "cred"}, "data": {"password": "eA=="}}),
    );
    world.change(json!({"sql": sql, "storage": {"size": "1Gi", "retention": "Delete"}, "monitoring": {"podMonitor": true}}));
    world.until_ready("Running").await;
    world.change(json!({"networkPolicy": {"mode": "Disabled"}, "podDisruptionBudget": {"enabled": false}, "monitoring": {}}));
    world.until_ready("Running").await;
    for _ in 0..3 {
        world.pass().await.unwrap();
    }
    for kind in ["networkpolicies.networking", "poddisruptionbudgets.policy", "podmonitors.monitoring"] {
        assert!(world.server.names(kind).is_empty(), "{kind} that nobody asks for any more");
    }
    world.server.delete(JOBS, "orders");
    world.until("gone", |server| server.get(JOBS, "orders").is_none()).await;
    let state = world.server.state();
    let asked: BTreeSet<_> = state.asked.iter().map(|a| (a.group.clone(), a.resource.clone(), a.verb)).collect();
    assert!(asked.len() > 20, "{asked:?}");
    for (group, resource, verb) in asked {
        assert!(rbac::allows(&group, &resource, verb), "no right to {verb} {resource} in '{group}'");
    }
}

#[tokio::test]
async fn a_spec_that_no_rule_refuses_and_nobody_can_read_is_said() {
    let mut world = World::new();
    world.change(json!({"resources": {"memory": "0"}}));
    world
        .until("unreadable", |server| condition(&server.get(JOBS, "orders").unwrap(), "Stalled")["reason"] == "InvalidSpec")
        .await;
    world.change(json!({"resources": {"memory": "1Gi"}}));
    world.until_ready("Running").await;
    world.change(json!({"tomorrow": true}));
    world
        .until("a field of tomorrow", |server| {
            condition(&server.get(JOBS, "orders").unwrap(), "Stalled")["reason"] == "InvalidSpec"
        })
        .await;
    assert!(world.server.get("pods", "orders-0").is_some(), "what runs goes on");
    world.server.delete(JOBS, "orders");
    world.until("gone", |server| server.get(JOBS, "orders").is_none()).await;
}

fn any_spec() -> impl Strategy<Value = Value> {
    let text = || "[ -~é\\n]{1,40}";
    let template = prop_oneof![
        Just(json!({"spec": {"nodeSelector": {"a": "b"}}})),
        Just(json!({"spec": {"containers": [{"name": "worker", "command": ["sh"]}]}})),
        Just(json!({"spec": {"containers": "none"}})),
        Just(json!({"spec": {"containers": [{"name": "side", "image": 7}]}})),
        Just(json!({"metadata": {"labels": {"a": 1}}})),
        Just(json!({"spec": null})),
        Just(json!({"spec": {"volumes": [{"name": "x"}]}})),
    ];
    let maybe = |value: BoxedStrategy<Value>| prop::option::of(value);
    (
        (
            text(),
            maybe(text().prop_map(Value::from).boxed()),
            maybe((1_u32..4).prop_map(Value::from).boxed()),
            maybe(template.boxed()),
        ),
        (
            maybe(
                prop_oneof![Just(json!({"cpu": 2})), Just(json!({"memory": "0"})), Just(json!({"cpu": "3", "memory": "2Gi"}))]
                    .boxed(),
            ),
            maybe(
                prop_oneof![
                    Just(json!({"size": "1Gi"})),
                    Just(json!({"size": "0"})),
                    Just(json!({"size": "5Gi", "storageClassName": "x"}))
                ]
                .boxed(),
            ),
            maybe(prop_oneof![Just(json!("Running")), Just(json!("Suspended"))].boxed()),
            maybe(
                prop_oneof![Just(json!({"mode": "Savepoint"})), Just(json!({"mode": "Stateless", "rollback": "Automatic"}))]
                    .boxed(),
            ),
            maybe((1_u32..9).prop_map(Value::from).boxed()),
        ),
    )
        .prop_map(|((sql, image, replicas, template), (resources, storage, state, upgrade, deadline))| {
            let mut spec = json!({"sql": {"inline": sql}, "state": "Running", "replicas": 1, "maxParallelism": 256});
            let fields = [
                ("image", image),
                ("replicas", replicas),
                ("template", template),
                ("resources", resources),
                ("storage", storage),
                ("state", state),
                ("upgrade", upgrade),
                ("activeDeadlineSeconds", deadline),
            ];
            for (field, value) in fields {
                if let Some(value) = value {
                    spec[field] = value;
                }
            }
            spec
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whatever the schema lets through ends in a condition of its generation, and can be deleted.
    #[test]
    fn every_spec_ends_in_a_condition(spec in any_spec()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut world = World::new();
            world.change(spec.clone());
            for _ in 0..25 {
                // A pass may fail; the job says why by the next.
                let _shown = world.pass().await;
                world.server.live();
            }
            let job = world.server.get(JOBS, "orders").unwrap();
            let ready = condition(&job, "Ready");
            assert_eq!(ready["observedGeneration"], job["metadata"]["generation"], "{job:#}");
            assert!(ready["status"] == "True" || condition(&job, "Stalled")["status"] == "True", "{job:#}");
            world.server.delete(JOBS, "orders");
            world.until("gone", |server| server.get(JOBS, "orders").is_none()).await;
        });
    }
}
