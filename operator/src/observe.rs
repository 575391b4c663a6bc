//! Reads all that `decide` needs to know of one job. It writes nothing.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;

use futures::future::{join, try_join_all};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ConfigMap, Event, PersistentVolumeClaim, Pod, Secret};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use kube::ResourceExt;
use kube::api::{Api, DynamicObject, ListParams};
use serde_json::Value;
use tiderace_crds::admin::PlanCheckReply;
use tiderace_crds::{DesiredState, StreamingJobStatus};

use crate::cannot_run::cannot_run;
use crate::certificates::{self, Contents};
use crate::context::{Context, StatementsVersion};
use crate::decide::{Check, ClaimFacts, Job, Observed, PodFacts, SetFacts, Target, Trouble, Worker};
use crate::execute::OPTIONAL_KINDS;
use crate::names::{self, EPOCH_LABEL, JOB_LABEL, RENDERED_ANNOTATION, REVISION_ANNOTATION};
use crate::ownership;
use crate::pod_facts;
use crate::quantity;
use crate::render::{Plan, RENDERER_VERSION, Scale};
use crate::worker_client;

/// How long a pod may be quiet before its events are asked, seconds.
const QUIET_SECONDS: i64 = 5;

/// What was read, and what carrying out the decision needs besides.
#[derive(Debug)]
pub struct Scene {
    /// For `decide`.
    pub observed: Observed,
    /// The statements of the manifest; none where they can't be had.
    pub statements: Option<String>,
    /// The ConfigMap that they came from, if they did.
    pub statements_version: Option<StatementsVersion>,
    /// The worker that answered, or would.
    pub worker: Option<worker_client::Target>,
    /// What is in the Secret with the authority, and in the worker's.
    pub secrets: (Option<Contents>, Option<Contents>),
    /// Whose the fields of the StatefulSet are.
    pub set_fields: Vec<ManagedFieldsEntry>,
}

/// Under which name it is remembered which fields of the StatefulSet are the operator's.
pub(crate) const STATEFUL_SET: &str = "StatefulSet";

impl Context {
    /// Reads it.
    pub async fn observe(&self, job: &Job, status: &StreamingJobStatus) -> Result<Scene, kube::Error> {
        let now = self.now();
        let namespace = job.namespace.as_str();
        let pods = Api::<Pod>::namespaced(self.client.clone(), namespace);
        let selector = ListParams::default().labels(&names::selector_text(&job.name));
        let (statements, (set, pods)) = join(
            self.statements(job),
            join(self.api("apps/v1", "StatefulSet", namespace).get_opt(&job.name), pods.list(&selector)),
        )
        .await;
        let (set, pods) = (set?, pods?);
        let (statements, statements_version, mut target) = match statements? {
            Ok((text, version)) => {
                let target = self.target(job, &text);
                (Some(text), version, target)
            }
            Err(trouble) => (None, None, Target::Missing(trouble)),
        };
        let mut foreign = set.as_ref().and_then(|set| foreign(set, &job.uid));
        // Somebody else's is none of the job's: nothing is ever done to it, not even when the job is deleted.
        let set = set.filter(|_| foreign.is_none());
        let set_fields = set.as_ref().and_then(|set| set.metadata.managed_fields.clone()).unwrap_or_default();
        let is_changed = set.as_ref().is_some_and(|set| self.is_set_changed(job, statements.as_deref(), &set.metadata));
        let set = set.as_ref().map(set_facts).map(|facts| SetFacts { is_changed, ..facts });
        // Others may carry the labels: copies for debugging, pods of another job whose labels somebody changed.
        let own = pods.items.iter().filter(|pod| names::is_worker_pod(&job.name, &pod.name_any()));
        let mut facts: Vec<PodFacts> = own.map(|pod| pod_facts::worker(pod, now)).collect();
        if facts.is_empty() && set.is_some() {
            match self.unlabelled_pod(job, now).await? {
                Some(Ok(stray)) => facts.push(stray),
                Some(Err(trouble)) => foreign = foreign.or(Some(trouble)),
                None => {}
            }
        }
        let is_steady = status.operation.is_none()
            && facts.iter().any(|p| p.is_ready)
            && matches!((&target, &status.deployed), (Target::Revision(r), Some(d)) if *r == d.revision);
        let is_wanted = job.spec.state == DesiredState::Running && job.deleted_at.is_none();
        if is_wanted
            && !is_steady
            && matches!(target, Target::Revision(_))
            && let Some(trouble) = self.missing(job).await?
        {
            target = Target::Missing(trouble);
        }
        self.ask_events(namespace, job, set.as_ref(), status, &mut facts, now).await?;
        let (secrets, foreign_secret) = self.secrets(job).await?;
        foreign = foreign.or(foreign_secret);
        let (worker, asked) = self.ask_worker(job, status, &facts, secrets.0.as_ref()).await;
        let image = job.spec.image.clone().unwrap_or_else(|| self.options.default_image.clone());
        let check = match &target {
            Target::Revision(revision) if is_wanted && needs_check(status, revision, &image) => {
                self.check(job, revision, &image, now).await?
            }
            _ => Check::None,
        };
        let claims = if job.spec.storage.is_some() { self.claims(job).await? } else { Vec::new() };
        let certificates_current = !certificates::is_due(secrets.0.as_ref(), secrets.1.as_ref(), now);
        let settings_current = match &statements {
            Some(text) if job.deleted_at.is_none() => {
                let current = self.settings_are_current(job, status, text).await?;
                foreign = foreign.or(current.1);
                current.0 && certificates_current
            }
            _ => true,
        };
        let observed = Observed {
            target,
            image,
            set,
            pods: facts,
            check,
            worker: asked,
            claims,
            settings_current,
            foreign,
            failure: self.failure(&job.uid),
            namespace_is_terminating: self.namespace_is_terminating(&job.uid),
            token: self.leadership.token(),
        };
        Ok(Scene { observed, statements, statements_version, worker, secrets, set_fields })
    }

    /// Whether somebody changed a field of the StatefulSet that the operator wrote. Which fields those are doesn't depend on the revision, but for
    /// parts that come and go with it; a change of those is seen by what was remembered.
    fn is_set_changed(&self, job: &Job, statements: Option<&str>, metadata: &kube::core::ObjectMeta) -> bool {
        if !self.are_fields_as_before(&job.uid, STATEFUL_SET, ownership::hash(metadata)) {
            return true;
        }
        let Some(statements) = statements else { return false };
        let revision = names::revision(&job.name, &job.spec, statements);
        let image = job.spec.image.as_deref().unwrap_or(&self.options.default_image);
        let plan = self.plan(job, &job.spec, statements, &revision, image);
        let scale = Scale { epoch: 0, replicas: 1, claim_size: None, renderer_version: RENDERER_VERSION };
        ownership::is_taken(metadata, &plan.stateful_set(scale))
    }

    /// The pod by the name of the job's first, when it isn't among those with the job's labels. One that lost them still runs, and its StatefulSet
    /// has let it go; one that never was the job's is an error. Either way no other can take its name.
    async fn unlabelled_pod(&self, job: &Job, now: Timestamp) -> Result<Option<Result<PodFacts, Trouble>>, kube::Error> {
        let name = names::first_pod(&job.name);
        let Some(pod) = Api::<Pod>::namespaced(self.client.clone(), &job.namespace).get_opt(&name).await? else {
            return Ok(None);
        };
        let (labels, selector) = (pod.labels(), names::selector(&job.name));
        let facts = pod_facts::worker(&pod, now);
        if selector.iter().all(|(key, value)| labels.get(key) == Some(value)) {
            return Ok(Some(Ok(facts))); // made since they were listed
        }
        let revision = pod.annotations().get(REVISION_ANNOTATION).and_then(|revision| revision.rsplit_once('-'));
        if revision.is_none_or(|(of, _)| of != job.name) {
            let text = format!("the pod {name} is there and belongs to nobody the operator knows: delete it, or rename the job");
            return Ok(Some(Err(Trouble::new("NameConflict", text))));
        }
        let message = format!(
            "the pod {name} has lost the labels {}: it runs on, unknown to its StatefulSet, which can make no other of that name; put them back, or delete the pod",
            names::selector_text(&job.name)
        );
        let trouble = Some(Trouble::new("NameConflict", message));
        Ok(Some(Ok(PodFacts { is_ready: false, is_stray: true, trouble, ..facts })))
    }

    /// The statements, inline or from the ConfigMap that the manifest names.
    async fn statements(&self, job: &Job) -> Result<Result<(String, Option<StatementsVersion>), Trouble>, kube::Error> {
        if let Some(text) = &job.spec.sql.inline {
            return Ok(Ok((text.clone(), None)));
        }
        let Some(at) = &job.spec.sql.config_map_key_ref else {
            return Ok(Err(Trouble::new("ConfigMapMissing", "spec.sql names neither statements nor a ConfigMap")));
        };
        let map = Api::<ConfigMap>::namespaced(self.client.clone(), &job.namespace).get_opt(&at.name).await?;
        let Some(map) = map else {
            let text = format!(
                "the ConfigMap {} of spec.sql.configMapKeyRef is not there: create it in the namespace {}",
                at.name, job.namespace
            );
            return Ok(Err(Trouble::new("ConfigMapMissing", text)));
        };
        let version = map
            .metadata
            .resource_version
            .map(|resource_version| StatementsVersion { config_map: at.name.clone(), resource_version });
        Ok(map.data.and_then(|mut data| data.remove(&at.key)).map(|text| (text, version)).ok_or_else(|| {
            Trouble::new(
                "ConfigMapMissing",
                format!("the ConfigMap {} of spec.sql.configMapKeyRef has no key {}", at.name, at.key),
            )
        }))
    }

    /// The revision that the manifest asks for, or why there can be none.
    fn target(&self, job: &Job, statements: &str) -> Target {
        if let Some(text) = cannot_run(&job.spec) {
            return Target::Refused(Trouble::new("PlanInvalid", text));
        }
        let revision = names::revision(&job.name, &job.spec, statements);
        let image = job.spec.image.as_deref().unwrap_or(&self.options.default_image);
        match self.plan(job, &job.spec, statements, &revision, image).config_map() {
            Ok(_) => Target::Revision(revision),
            Err(error @ crate::render::RenderError::ForbiddenTemplate(_)) => {
                Target::Refused(Trouble::new("ForbiddenTemplate", error.to_string()))
            }
            Err(error) => Target::Refused(Trouble::new("PlanInvalid", error.to_string())),
        }
    }

    /// What objects are rendered from.
    pub fn plan<'a>(
        &'a self,
        job: &'a Job,
        spec: &'a tiderace_crds::StreamingJobSpec,
        statements: &'a str,
        revision: &'a str,
        image: &'a str,
    ) -> Plan<'a> {
        Plan {
            job: &job.name,
            namespace: &job.namespace,
            uid: &job.uid,
            spec,
            statements,
            revision,
            image,
            image_pull_policy: self.options.image_pull_policy.as_deref(),
            operator_namespace: &self.options.operator_namespace,
            otlp_endpoint: self.options.worker_otlp_endpoint.as_deref(),
        }
    }

    /// A Secret or StorageClass that the manifest names and that isn't there.
    async fn missing(&self, job: &Job) -> Result<Option<Trouble>, kube::Error> {
        let secrets = Api::<Secret>::namespaced(self.client.clone(), &job.namespace);
        let mut read: BTreeMap<&str, Option<Secret>> = BTreeMap::new();
        for (name, at) in &job.spec.sql.secret_refs {
            if !read.contains_key(at.name.as_str()) {
                read.insert(&at.name, secrets.get_opt(&at.name).await?);
            }
            match read.get(at.name.as_str()).and_then(Option::as_ref) {
                None => {
                    let text = format!(
                        "the Secret {} that spec.sql.secretRefs.{name} names is not there: create it in the namespace {}",
                        at.name, job.namespace
                    );
                    return Ok(Some(Trouble::new("SecretMissing", text)));
                }
                Some(secret) if !secret.data.as_ref().is_some_and(|data| data.contains_key(&at.key)) => {
                    let text = format!("the Secret {} that spec.sql.secretRefs.{name} names has no key {}", at.name, at.key);
                    return Ok(Some(Trouble::new("SecretMissing", text)));
                }
                Some(_) => {}
            }
        }
        let Some(class) = job.spec.storage.as_ref().and_then(|s| s.storage_class_name.as_ref()) else { return Ok(None) };
        match Api::<StorageClass>::all(self.client.clone()).get_metadata_opt(class).await {
            Ok(Some(_)) => Ok(None),
            Ok(None) => {
                let text = format!(
                    "the StorageClass {class} of spec.storage.storageClassName is not there: `kubectl get storageclass` lists those that are"
                );
                Ok(Some(Trouble::new("StorageClassMissing", text)))
            }
            // An operator that looks after some namespaces may not read what belongs to the cluster; the pod's own events tell then.
            Err(kube::Error::Api(status)) if status.code == 403 => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A pod that waits without saying why has said it to its events; so has a StatefulSet that can't make one.
    async fn ask_events(
        &self,
        namespace: &str,
        job: &Job,
        set: Option<&SetFacts>,
        status: &StreamingJobStatus,
        pods: &mut Vec<PodFacts>,
        now: Timestamp,
    ) -> Result<(), kube::Error> {
        let events = Api::<Event>::namespaced(self.client.clone(), namespace);
        let limit = SignedDuration::from_secs(QUIET_SECONDS);
        for pod in pods.iter_mut().filter(|p| !p.is_running && !p.is_deleting && p.trouble.is_none() && !p.is_backing_off) {
            if pod.created_at.is_some_and(|at| now.duration_since(at) > limit) && pod.restarts == 0 {
                let of_pod = ListParams::default().fields(&format!("involvedObject.uid={}", pod.uid)).limit(50);
                pod.trouble = pod_facts::trouble_of_events(&format!("the pod {}", pod.name), &events.list(&of_pod).await?.items);
            }
        }
        let waits = status
            .operation
            .as_ref()
            .is_some_and(|o| o.step == tiderace_crds::Step::Starting && now.duration_since(o.step_at.0) > limit);
        if let Some(set) = set.filter(|set| set.replicas > 0 && pods.is_empty() && waits) {
            let of_set = ListParams::default().fields(&format!("involvedObject.uid={}", set.uid)).limit(50);
            let trouble =
                pod_facts::trouble_of_events(&format!("the StatefulSet {}", job.name), &events.list(&of_set).await?.items);
            if trouble.is_some() {
                // A pod that could not be made.
                pods.push(PodFacts { name: names::first_pod(&job.name), epoch: status.epoch, trouble, ..PodFacts::default() });
            }
        }
        Ok(())
    }

    /// What is in the job's two Secrets; one of that name that is somebody else's is not read, and told.
    async fn secrets(&self, job: &Job) -> Result<((Option<Contents>, Option<Contents>), Option<Trouble>), kube::Error> {
        let api = Api::<Secret>::namespaced(self.client.clone(), &job.namespace);
        let (authority, worker) = (names::authority_secret(&job.name), names::worker_secret(&job.name));
        let (authority, worker) = join(api.get_opt(&authority), api.get_opt(&worker)).await;
        let (authority, worker) = (authority?, worker?);
        let of_others = |secret: &Option<Secret>| foreign_metadata(&secret.as_ref()?.metadata, "Secret", &job.uid);
        let trouble = of_others(&authority).or_else(|| of_others(&worker));
        let own = |secret: Option<Secret>| secret.filter(|s| foreign_metadata(&s.metadata, "Secret", &job.uid).is_none());
        Ok(((own(authority).map(contents), own(worker).map(contents)), trouble))
    }

    /// The status of the worker of the newest epoch, if one can be asked.
    async fn ask_worker(
        &self,
        job: &Job,
        status: &StreamingJobStatus,
        pods: &[PodFacts],
        authority: Option<&Contents>,
    ) -> (Option<worker_client::Target>, Worker) {
        let newest = pods.iter().filter(|p| p.is_running).max_by_key(|p| (p.epoch == status.epoch, !p.is_deleting));
        let Some(pod) = newest else { return (None, Worker::None) };
        let Some(address) = pod.address.as_deref().and_then(|a| a.parse::<IpAddr>().ok()) else { return (None, Worker::None) };
        let Some(identity) = authority.and_then(certificates::client_identity) else {
            return (None, Worker::Unreachable("the job's certificates are missing".to_owned()));
        };
        let target = worker_client::Target {
            address,
            server_name: names::server_name(&job.name, &job.namespace),
            identity: Arc::new(identity),
            token: self.leadership.token(),
        };
        let said = match self.workers.status(&target).await {
            Ok(said) => Worker::Status(said),
            Err(error) => Worker::Unreachable(error.to_string()),
        };
        (Some(target), said)
    }

    async fn claims(&self, job: &Job) -> Result<Vec<ClaimFacts>, kube::Error> {
        let api = Api::<PersistentVolumeClaim>::namespaced(self.client.clone(), &job.namespace);
        let found = api.list(&ListParams::default().labels(&format!("{JOB_LABEL}={}", job.name))).await?;
        Ok(found.items.iter().map(claim_facts).collect())
    }

    /// How the check of a revision by an image stands.
    async fn check(&self, job: &Job, revision: &str, image: &str, now: Timestamp) -> Result<Check, kube::Error> {
        let key = names::check_job(revision, image);
        if let Some(check) = self.remembered_check(&job.uid, &key) {
            return Ok(check);
        }
        let Some(found) = self.api("batch/v1", "Job", &job.namespace).get_opt(&key).await? else { return Ok(Check::None) };
        if found.metadata.deletion_timestamp.is_some() || foreign(&found, &job.uid).is_some() {
            return Ok(Check::Running(None));
        }
        let pods = Api::<Pod>::namespaced(self.client.clone(), &job.namespace);
        let pods = pods.list(&ListParams::default().labels(&format!("batch.kubernetes.io/job-name={key}"))).await?;
        let has_ended = found
            .data
            .pointer("/status/conditions")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .any(|c| matches!(c["type"].as_str(), Some("Complete" | "Failed")) && c["status"] == "True");
        let end = pods.items.iter().find_map(|pod| pod_facts::end_of(pod, "check"));
        let check = match end {
            Some((code @ (0 | 1), message)) => match serde_json::from_str::<PlanCheckReply>(message.trim()) {
                Ok(reply) => Check::Done(reply),
                Err(_) => {
                    Check::Broken(format!("the check of the plan by {image} ended with exit {code} and said: {}", message.trim()))
                }
            },
            Some((code, message)) => {
                Check::Broken(format!("the check of the plan by {image} ended with exit {code}: {}", message.trim()))
            }
            None if has_ended => {
                let why = found.data.pointer("/status/conditions/0/message").and_then(Value::as_str).unwrap_or("its pod is gone");
                Check::Broken(format!("the check of the plan by {image} failed: {why}"))
            }
            None => return Ok(Check::Running(self.check_trouble(job, &found, &pods.items, now).await?)),
        };
        self.remember_check(&job.uid, &key, check.clone());
        Ok(check)
    }

    async fn check_trouble(
        &self,
        job: &Job,
        check: &DynamicObject,
        pods: &[Pod],
        now: Timestamp,
    ) -> Result<Option<Trouble>, kube::Error> {
        if let Some(trouble) = pods.iter().find_map(|pod| pod_facts::trouble(pod, now)) {
            return Ok(Some(trouble));
        }
        let age = check.metadata.creation_timestamp.as_ref().map(|at| now.duration_since(at.0)).unwrap_or_default();
        let is_running = pods.iter().any(|p| p.status.as_ref().is_some_and(|s| s.phase.as_deref() == Some("Running")));
        if age < SignedDuration::from_secs(QUIET_SECONDS) || is_running {
            return Ok(None);
        }
        let of = pods.first().and_then(ResourceExt::uid).or_else(|| check.uid()).unwrap_or_default();
        let events = Api::<Event>::namespaced(self.client.clone(), &job.namespace);
        let events = events.list(&ListParams::default().fields(&format!("involvedObject.uid={of}")).limit(50)).await?;
        Ok(pod_facts::trouble_of_events("the check of the plan", &events.items))
    }

    /// Whether every setting is there as rendered; and one that belongs to somebody else, if there is one.
    async fn settings_are_current(
        &self,
        job: &Job,
        status: &StreamingJobStatus,
        statements: &str,
    ) -> Result<(bool, Option<Trouble>), kube::Error> {
        let revision = names::revision(&job.name, &job.spec, statements);
        let image = job.spec.image.as_deref().unwrap_or(&self.options.default_image);
        let wanted = self.plan(job, &job.spec, statements, &revision, image).settings(&job.spec);
        // Read again only when a watch has reported a change: a starting job has a pass a second.
        let key = (job.namespace.clone(), job.name.clone());
        let mut hasher = DefaultHasher::new();
        (&job.uid, &revision, status.deployed.as_ref().map(|deployed| &deployed.revision)).hash(&mut hasher);
        wanted.iter().for_each(|object| object.to_string().hash(&mut hasher));
        let fingerprint = hasher.finish();
        if self.are_settings_seen(&key, fingerprint) {
            return Ok((true, None));
        }
        let changes = self.setting_changes(&key);
        let mut reads = Vec::new();
        for object in &wanted {
            let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
            let api = self.api(&text("/apiVersion"), &text("/kind"), &job.namespace);
            let name = text("/metadata/name");
            reads.push(async move {
                match api.get_metadata_opt(&name).await {
                    // The kind is not in the cluster (PodMonitor): writing it says so.
                    Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
                    other => other,
                }
            });
        }
        let found = try_join_all(reads).await?;
        let mut current = true;
        for (object, found) in wanted.iter().zip(found) {
            let Some(found) = found else {
                current = false;
                continue;
            };
            if let Some(trouble) = foreign_metadata(&found.metadata, object["kind"].as_str().unwrap_or_default(), &job.uid) {
                return Ok((false, Some(trouble)));
            }
            let setting = format!(
                "{} {}",
                object["kind"].as_str().unwrap_or_default(),
                object["metadata"]["name"].as_str().unwrap_or_default()
            );
            current &= self.are_fields_as_before(&job.uid, &setting, ownership::hash(&found.metadata));
            current &= !ownership::is_taken(&found.metadata, object);
            let hash = found.metadata.annotations.as_ref().and_then(|a| a.get(RENDERED_ANNOTATION));
            current &=
                hash.map(String::as_str) == object.pointer("/metadata/annotations").and_then(|a| a[RENDERED_ANNOTATION].as_str());
        }
        // What the manifest asked for once and asks for no more.
        for (api_version, kind) in OPTIONAL_KINDS {
            if !current || wanted.iter().any(|object| object["kind"] == kind) {
                continue;
            }
            match self.api(api_version, kind, &job.namespace).get_metadata_opt(&job.name).await {
                Ok(Some(found)) => current &= foreign_metadata(&found.metadata, kind, &job.uid).is_some(),
                Ok(None) => {}
                // Not a kind of this cluster, or none that this operator may see.
                Err(kube::Error::Api(status)) if matches!(status.code, 403 | 404) => {}
                Err(error) => return Err(error),
            }
        }
        if let Some(deployed) = &status.deployed {
            let maps = Api::<ConfigMap>::namespaced(self.client.clone(), &job.namespace);
            // A revision's ConfigMap that somebody deleted: it can be made again only from the manifest it came from.
            current &= deployed.revision != revision || maps.get_metadata_opt(&revision).await?.is_some();
        }
        if current {
            self.set_settings_seen(&key, fingerprint, changes);
        }
        Ok((current, None))
    }
}

fn needs_check(status: &StreamingJobStatus, revision: &str, image: &str) -> bool {
    let is_deployed = status.deployed.as_ref().is_some_and(|d| d.revision == revision);
    let is_planned = status.plan.as_ref().is_some_and(|p| p.revision == revision && p.image == image);
    !is_deployed && !is_planned
}

fn contents(secret: Secret) -> Contents {
    secret.data.unwrap_or_default().into_iter().filter_map(|(key, value)| Some((key, String::from_utf8(value.0).ok()?))).collect()
}

/// That an object of ours is somebody else's, if it is.
pub fn foreign(object: &DynamicObject, uid: &str) -> Option<Trouble> {
    let kind = object.types.as_ref().map_or("object", |t| t.kind.as_str());
    foreign_metadata(&object.metadata, kind, uid)
}

fn foreign_metadata(metadata: &kube::core::ObjectMeta, kind: &str, uid: &str) -> Option<Trouble> {
    let owners = metadata.owner_references.as_deref().unwrap_or_default();
    if owners.iter().any(|owner| owner.uid == uid) {
        return None;
    }
    let name = metadata.name.as_deref().unwrap_or_default();
    let text = match owners.iter().find(|o| o.controller == Some(true)) {
        Some(owner) if owner.kind == "StreamingJob" => {
            format!("the {kind} {name} still belongs to a deleted job of the same name; the job starts when it is gone")
        }
        Some(owner) => format!("the {kind} {name} is there and belongs to the {} {}: rename the job", owner.kind, owner.name),
        None => format!("the {kind} {name} is there and belongs to nobody the operator knows: delete it, or rename the job"),
    };
    Some(Trouble::new("NameConflict", text))
}

fn set_facts(set: &DynamicObject) -> SetFacts {
    let spec = &set.data["spec"];
    SetFacts {
        uid: set.uid().unwrap_or_default(),
        resource_version: set.resource_version().unwrap_or_default(),
        replicas: spec["replicas"].as_u64().and_then(|n| u32::try_from(n).ok()).unwrap_or(1),
        epoch: set.labels().get(EPOCH_LABEL).and_then(|e| e.parse().ok()).unwrap_or_default(),
        revision: set.annotations().get(REVISION_ANNOTATION).cloned().unwrap_or_default(),
        claim_size: spec
            .pointer("/volumeClaimTemplates/0/spec/resources/requests/storage")
            .and_then(Value::as_str)
            .map(ToOwned::to_owned),
        is_deleting: set.metadata.deletion_timestamp.is_some(),
        is_changed: false,
    }
}

fn claim_facts(claim: &PersistentVolumeClaim) -> ClaimFacts {
    let bytes = |q: Option<&k8s_openapi::apimachinery::pkg::api::resource::Quantity>| q.and_then(|q| quantity::bytes(&q.0));
    let requests = claim.spec.as_ref().and_then(|s| s.resources.as_ref()).and_then(|r| r.requests.as_ref());
    let status = claim.status.as_ref();
    let trouble = status.and_then(|s| s.conditions.as_ref()).into_iter().flatten().find_map(|c| {
        matches!(c.type_.as_str(), "ControllerResizeError" | "NodeResizeError").then(|| c.message.clone().unwrap_or_default())
    });
    ClaimFacts {
        name: claim.name_any(),
        requested_bytes: bytes(requests.and_then(|r| r.get("storage"))).unwrap_or_default(),
        capacity_bytes: bytes(status.and_then(|s| s.capacity.as_ref()).and_then(|c| c.get("storage"))),
        trouble,
    }
}
