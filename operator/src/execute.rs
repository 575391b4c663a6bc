//! Does what was decided: the status first, then each action in order. Any failure ends the pass; the next one decides anew.

use std::collections::BTreeMap;

use futures::future::try_join_all;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use kube::Resource;
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams, Preconditions, PropagationPolicy};
use kube::core::Request;
use serde_json::{Value, json};
use tiderace_crds::admin::{PlanCheckRequest, StopRequest};
use tiderace_crds::{Manifest, StreamingJobSpec, StreamingJobStatus};
use tracing::Instrument as _;

use crate::certificates;
use crate::context::Context;
use crate::decide::{Action, Check, Decision, Job, Trouble, Worker};
use crate::names::{self, FIELD_MANAGER, FINALIZER, JOB_LABEL, STATUS_MANAGER};
use crate::observe::{STATEFUL_SET, Scene, foreign};
use crate::ownership;
use crate::reconcile::read_status;
use crate::render::{Plan, Scale};

/// Revisions whose ConfigMaps are kept besides those in use.
const REVISIONS_KEPT: usize = 3;

/// Settings that a manifest may ask for or not, by the name of the job.
pub(crate) const OPTIONAL_KINDS: [(&str, &str); 3] =
    [("networking.k8s.io/v1", "NetworkPolicy"), ("policy/v1", "PodDisruptionBudget"), ("monitoring.coreos.com/v1", "PodMonitor")];

/// Why a pass ended.
#[derive(Debug, thiserror::Error)]
pub enum ExecuteError {
    /// The API server said no, or nothing.
    #[error("{what}: {error}")]
    Kube {
        /// What was asked of it.
        what: String,
        /// What it said.
        error: Box<kube::Error>,
    },
    /// This process leads no more.
    #[error("another operator leads")]
    NotLeading,
    /// Something to be shown on the job.
    #[error("{0}")]
    Refused(String),
}

impl ExecuteError {
    /// Whether somebody else was faster: nothing is wrong, the next pass sees what they did.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Kube { error, .. } if matches!(&**error, kube::Error::Api(status) if status.code == 409))
    }

    /// What the job's conditions should say: the API server refuses what the job asks for.
    #[must_use]
    pub fn trouble(&self) -> Option<Trouble> {
        match self {
            Self::Kube { what, error } => match &**error {
                kube::Error::Api(status) if matches!(status.code, 400 | 403 | 404 | 422) => {
                    let is_unknown_kind = status.code == 404 && status.message.contains("page not found");
                    let hint = if is_unknown_kind {
                        " (the cluster has no such kind: install its definition, or don't ask for it)"
                    } else {
                        ""
                    };
                    Some(Trouble::new("ApplyFailed", format!("{what}: {}{hint}", status.message)))
                }
                _ => None,
            },
            Self::Refused(text) => Some(Trouble::new("ApplyFailed", text.clone())),
            Self::NotLeading => None,
        }
    }

    /// Whether the API server takes nothing new in the namespace.
    #[must_use]
    pub fn is_namespace_terminating(&self) -> bool {
        matches!(self, Self::Kube { error, .. } if matches!(&**error, kube::Error::Api(status)
            if status.code == 403 && (status.message.contains("being terminated") || status.details.as_ref().is_some_and(|d| d.causes.iter().any(|c| c.reason == "NamespaceTerminating")))))
    }
}

fn at<T>(what: impl Into<String>) -> impl FnOnce(kube::Error) -> Result<T, ExecuteError> {
    move |error| Err(ExecuteError::Kube { what: what.into(), error: Box::new(error) })
}

impl Context {
    /// Writes the status if it changed, then acts.
    pub async fn execute(
        &self,
        job: &Job,
        object: &DynamicObject,
        before: &StreamingJobStatus,
        scene: &Scene,
        decision: &Decision,
    ) -> Result<(), ExecuteError> {
        if decision.status != *before {
            self.write_status(job, object, &decision.status).await?;
        }
        for happening in &decision.happenings {
            self.teller.tell(job, happening).await;
        }
        for action in &decision.actions {
            assert!(
                !action.touches_workers() || decision.status.operation.is_some(),
                "workers are touched by an operation alone, and it is in the status by now: {action:?}"
            );
            if !self.leadership.is_held() {
                return Err(ExecuteError::NotLeading);
            }
            tracing::debug!(job = %job.name, namespace = %job.namespace, ?action, "acting");
            let span = tracing::info_span!("act", action = action.name());
            self.act(job, object, scene, &decision.status, action).instrument(span).await?;
        }
        Ok(())
    }

    async fn write_status(&self, job: &Job, object: &DynamicObject, status: &StreamingJobStatus) -> Result<(), ExecuteError> {
        if !self.leadership.is_held() {
            return Err(ExecuteError::NotLeading);
        }
        // With the version that was read: whoever wrote since then wins, and this pass has decided from what is no more.
        let patch = json!({
            "apiVersion": names::API_VERSION, "kind": "StreamingJob",
            "metadata": {"name": job.name, "namespace": job.namespace, "uid": job.uid, "resourceVersion": object.metadata.resource_version},
            "status": status,
        });
        let params = PatchParams::apply(STATUS_MANAGER).force();
        let api = self.api(names::API_VERSION, "StreamingJob", &job.namespace);
        let what = "writing the status";
        let version = match api.patch_status(&job.name, &params, &Patch::Apply(&patch)).await {
            // As text: what was sent may be more exact than what an API server gives back.
            Ok(written) if json!(read_status(&written)) == json!(status) => return Ok(()),
            Ok(written) => written.metadata.resource_version,
            Err(kube::Error::Api(refused)) if refused.code == 422 => object.metadata.resource_version.clone(),
            Err(error) => return at(what)(error),
        };
        // Somebody has edited the status by hand, and owns parts that an apply doesn't take away: it is written anew as a whole.
        tracing::warn!(job = %job.name, namespace = %job.namespace, "the status was edited by somebody else: it is replaced");
        let path = format!("{}/{}/status", api.resource_url(), job.name);
        let whole = json!([
            {"op": "add", "path": "/status", "value": status},
            {"op": "replace", "path": "/metadata/resourceVersion", "value": version},
        ]);
        self.json_patch(&path, &whole, what).await.map(drop)
    }

    async fn json_patch(&self, path: &str, operations: &Value, what: &str) -> Result<DynamicObject, ExecuteError> {
        let request = axum::http::Request::patch(format!("{path}?fieldManager={FIELD_MANAGER}"))
            .header("content-type", "application/json-patch+json")
            .body(operations.to_string().into_bytes());
        match request {
            Ok(request) => self.client.request(request).await.or_else(at(what)),
            Err(error) => at(what)(kube::Error::HttpError(error)),
        }
    }

    async fn act(
        &self,
        job: &Job,
        object: &DynamicObject,
        scene: &Scene,
        status: &StreamingJobStatus,
        action: &Action,
    ) -> Result<(), ExecuteError> {
        let jobs = self.api(names::API_VERSION, "StreamingJob", &job.namespace);
        match action {
            Action::AddFinalizer => self.set_finalizers(object, &jobs, true).await,
            Action::RemoveFinalizer => self.set_finalizers(object, &jobs, false).await,
            Action::ApplySettings => self.apply_settings(job, scene, status).await,
            Action::StartCheck => self.start_check(job, scene, status).await,
            Action::ForgetChecks => self.forget_check_jobs(job).await,
            Action::ApplySet { revision, image, epoch, replicas, renderer_version, seen } => {
                let claim_size = scene.observed.set.as_ref().and_then(|set| set.claim_size.as_deref());
                let scale = Scale { epoch: *epoch, replicas: *replicas, claim_size, renderer_version: *renderer_version };
                self.apply_set(job, scene, revision, image, scale, seen.as_deref()).await?;
                self.forget_old_revisions(job, status).await
            }
            Action::ScaleDown { seen } => {
                let patch = json!({"metadata": {"resourceVersion": seen}, "spec": {"replicas": 0}});
                let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
                let sets = self.api("apps/v1", "StatefulSet", &job.namespace);
                sets.patch(&job.name, &params, &Patch::Merge(&patch)).await.map(drop).or_else(at("scaling the StatefulSet down"))
            }
            Action::DeletePods => {
                let pods = Api::<Pod>::namespaced(self.client.clone(), &job.namespace);
                for pod in scene.observed.pods.iter().filter(|pod| !pod.is_deleting && !pod.uid.is_empty()) {
                    let preconditions = Some(Preconditions { uid: Some(pod.uid.clone()), resource_version: None });
                    let params = DeleteParams { preconditions, ..DeleteParams::default() };
                    gone(pods.delete(&pod.name, &params).await.map(drop))
                        .or_else(at(format!("deleting the pod {}", pod.name)))?;
                }
                Ok(())
            }
            Action::StopWorker { operation_id, epoch, mode } => {
                let Some(worker) = &scene.worker else { return Ok(()) };
                let order = StopRequest { operation_id: operation_id.clone(), epoch: *epoch, mode: *mode };
                // A worker that doesn't take the order is stopped by SIGTERM when its time is up; the step is bounded.
                if let Err(error) = self.workers.stop(worker, &order).await {
                    tracing::info!(job = %job.name, namespace = %job.namespace, %error, "the worker didn't take the order to stop");
                }
                Ok(())
            }
            Action::GrowClaim { name } => {
                let size = job.spec.storage.as_ref().map(|s| s.size.to_string()).unwrap_or_default();
                let patch = json!({"spec": {"resources": {"requests": {"storage": size}}}});
                let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
                let claims = Api::<PersistentVolumeClaim>::namespaced(self.client.clone(), &job.namespace);
                let what = format!("growing the volume claim {name} to {size}");
                claims.patch(name, &params, &Patch::Merge(&patch)).await.map(drop).or_else(at(what))
            }
            Action::OrphanSet { uid } => {
                let params = DeleteParams {
                    propagation_policy: Some(PropagationPolicy::Orphan),
                    preconditions: Some(Preconditions { uid: Some(uid.clone()), resource_version: None }),
                    ..DeleteParams::default()
                };
                let sets = self.api("apps/v1", "StatefulSet", &job.namespace);
                gone(sets.delete(&job.name, &params).await.map(drop)).or_else(at("deleting the StatefulSet around its pods"))
            }
            Action::DeleteClaims => {
                let claims = Api::<PersistentVolumeClaim>::namespaced(self.client.clone(), &job.namespace);
                for claim in &scene.observed.claims {
                    let what = format!("deleting the volume claim {}", claim.name);
                    gone(claims.delete(&claim.name, &DeleteParams::default()).await.map(drop)).or_else(at(what))?;
                }
                Ok(())
            }
            Action::DeleteJob => {
                let params = DeleteParams {
                    preconditions: Some(Preconditions { uid: Some(job.uid.clone()), resource_version: None }),
                    ..DeleteParams::default()
                };
                gone(jobs.delete(&job.name, &params).await.map(drop)).or_else(at("deleting the finished job"))
            }
        }
    }

    async fn set_finalizers(&self, object: &DynamicObject, jobs: &Api<DynamicObject>, add: bool) -> Result<(), ExecuteError> {
        let mut finalizers = object.metadata.finalizers.clone().unwrap_or_default();
        finalizers.retain(|f| f != FINALIZER);
        if add {
            finalizers.push(FINALIZER.to_owned());
        }
        let name = object.metadata.name.clone().unwrap_or_default();
        // By merge with the version that was read: other controllers' finalizers stay. After a write of the status the version is another, and so
        // it is left out when the finalizer goes: this operator is the only one that takes its own off.
        let mut metadata = json!({"finalizers": finalizers});
        if add {
            metadata["resourceVersion"] = json!(object.metadata.resource_version);
        } else if let Some(now) = jobs.get_metadata_opt(&name).await.or_else(at("reading the job"))? {
            let mut left = now.metadata.finalizers.unwrap_or_default();
            left.retain(|f| f != FINALIZER);
            metadata = json!({"finalizers": left, "resourceVersion": now.metadata.resource_version});
        } else {
            return Ok(());
        }
        let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        gone(jobs.patch_metadata(&name, &params, &Patch::Merge(&json!({"metadata": metadata}))).await.map(drop))
            .or_else(at("setting the finalizer"))
    }

    /// The spec and statements of a revision: the manifest's own, or those that its ConfigMap keeps.
    async fn stored(&self, job: &Job, scene: &Scene, revision: &str) -> Result<(StreamingJobSpec, String), ExecuteError> {
        if let Some(statements) = &scene.statements
            && names::revision(&job.name, &job.spec, statements) == revision
        {
            return Ok((job.spec.clone(), statements.clone()));
        }
        let maps = Api::<ConfigMap>::namespaced(self.client.clone(), &job.namespace);
        let map = maps.get_opt(revision).await.or_else(at(format!("reading the ConfigMap {revision}")))?;
        let data = map.and_then(|map| map.data).unwrap_or_default();
        let lost = |why: String| {
            ExecuteError::Refused(format!(
                "the ConfigMap {revision}, from which the job was started, {why}: change or restart the job"
            ))
        };
        let text = data.get("job.yaml").ok_or_else(|| lost("is gone".to_owned()))?;
        let manifest = Manifest::parse(text).map_err(|error| lost(format!("can't be read ({error})")))?;
        let statements = data.get("job.sql").cloned().or_else(|| manifest.job.spec.sql.inline.clone()).unwrap_or_default();
        let mut spec = manifest.job.spec;
        if let (Some(stored), Some(wanted)) = (&mut spec.storage, &job.spec.storage) {
            stored.size = wanted.size.clone();
        }
        Ok((spec, statements))
    }

    async fn apply_settings(&self, job: &Job, scene: &Scene, status: &StreamingJobStatus) -> Result<(), ExecuteError> {
        let statements = scene.statements.clone().unwrap_or_default();
        let revision = names::revision(&job.name, &job.spec, &statements);
        let image = job.spec.image.clone().unwrap_or_else(|| self.options.default_image.clone());
        let plan = self.plan(job, &job.spec, &statements, &revision, &image);
        self.apply_certificates(&plan, scene).await?;
        for object in plan.settings(&job.spec) {
            self.apply(job, &object).await?;
        }
        self.drop_unwanted(job, &plan).await?;
        if status.deployed.as_ref().is_some_and(|d| d.revision == revision) {
            self.apply_revision(job, &plan).await?;
        }
        Ok(())
    }

    /// Settings that the manifest asked for once and asks for no more.
    async fn drop_unwanted(&self, job: &Job, plan: &Plan<'_>) -> Result<(), ExecuteError> {
        let wanted = plan.settings(&job.spec);
        for (api_version, kind) in OPTIONAL_KINDS {
            if wanted.iter().any(|object| object["kind"] == kind) {
                continue;
            }
            let api = self.api(api_version, kind, &job.namespace);
            match api.get_opt(&job.name).await {
                Ok(Some(found)) if foreign(&found, &job.uid).is_none() => {
                    gone(api.delete(&job.name, &DeleteParams::default()).await.map(drop))
                        .or_else(at(format!("deleting the {kind} {}", job.name)))?;
                }
                // Not there, not ours, not a kind of this cluster, or none that this operator may see: nothing to take away.
                Ok(_) => {}
                Err(kube::Error::Api(status)) if matches!(status.code, 403 | 404) => {}
                Err(error) => return at(format!("reading the {kind} {}", job.name))(error),
            }
        }
        Ok(())
    }

    async fn apply_certificates(&self, plan: &Plan<'_>, scene: &Scene) -> Result<(), ExecuteError> {
        let (authority, worker) = (scene.secrets.0.as_ref(), scene.secrets.1.as_ref());
        let now = self.now();
        if !certificates::is_due(authority, worker, now) {
            return Ok(());
        }
        let issued = certificates::issue(plan.job, plan.namespace, authority, worker, self.options.lifetimes, now)
            .map_err(|error| ExecuteError::Refused(error.to_string()))?;
        // The authority first: a worker's certificate must never be there without the key that renews it.
        for (name, data) in
            [(names::authority_secret(plan.job), &issued.authority), (names::worker_secret(plan.job), &issued.worker)]
        {
            let object = plan.secret(&name, "Opaque", data);
            let api = self.api("v1", "Secret", plan.namespace);
            let params = PatchParams::apply(FIELD_MANAGER).force();
            api.patch(&name, &params, &Patch::Apply(&object))
                .await
                .map(drop)
                .or_else(at(format!("writing the Secret {name}")))?;
        }
        Ok(())
    }

    async fn apply_revision(&self, job: &Job, plan: &Plan<'_>) -> Result<(), ExecuteError> {
        let object = plan.config_map().map_err(|error| ExecuteError::Refused(error.to_string()))?;
        self.apply(job, &object).await
    }

    async fn apply_set(
        &self,
        job: &Job,
        scene: &Scene,
        revision: &str,
        image: &str,
        scale: Scale<'_>,
        seen: Option<&str>,
    ) -> Result<(), ExecuteError> {
        let (spec, statements) = self.stored(job, scene, revision).await?;
        let plan = self.plan(job, &spec, &statements, revision, image);
        self.apply_certificates(&plan, scene).await?;
        self.apply_revision(job, &plan).await?;
        let mut set = plan.stateful_set(scale);
        let api = self.api("apps/v1", "StatefulSet", &job.namespace);
        let what = "writing the StatefulSet";
        let written = match seen {
            // An operator that was paused and isn't the leader any more carries an old version, and is refused.
            Some(version) => {
                let version = match ownership::as_applied(&scene.set_fields) {
                    Some(entries) => self.take_over(&api, &job.name, version, &entries).await?,
                    None => version.to_owned(),
                };
                set["metadata"]["resourceVersion"] = json!(version);
                let params = PatchParams::apply(FIELD_MANAGER).force();
                api.patch(&job.name, &params, &Patch::Apply(&set)).await.or_else(at(what))?
            }
            None => {
                let set: DynamicObject = serde_json::from_value(set).map_err(|error| ExecuteError::Refused(error.to_string()))?;
                let params = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
                api.create(&params, &set).await.or_else(at(what))?
            }
        };
        self.remember_fields(&job.uid, STATEFUL_SET, ownership::hash(&written.metadata));
        Ok(())
    }

    /// Makes what the operator wrote otherwise than by server-side apply part of what it applies: only then does an apply take away what the job has no
    /// more. The new resourceVersion.
    async fn take_over(
        &self,
        api: &Api<DynamicObject>,
        name: &str,
        seen: &str,
        entries: &[ManagedFieldsEntry],
    ) -> Result<String, ExecuteError> {
        let path = format!("{}/{name}", api.resource_url());
        let patch = json!([
            {"op": "replace", "path": "/metadata/managedFields", "value": entries},
            {"op": "replace", "path": "/metadata/resourceVersion", "value": seen},
        ]);
        let now = self.json_patch(&path, &patch, "writing whose the StatefulSet's fields are").await?;
        Ok(now.metadata.resource_version.unwrap_or_default())
    }

    /// Server-side apply of an object that the job owns; refused where somebody else owns it.
    async fn apply(&self, job: &Job, object: &Value) -> Result<(), ExecuteError> {
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let (kind, name) = (text("/kind"), text("/metadata/name"));
        let api = self.api(text("/apiVersion"), kind, &job.namespace);
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let written = api.patch(name, &params, &Patch::Apply(object)).await.or_else(at(format!("writing the {kind} {name}")))?;
        self.remember_fields(&job.uid, &format!("{kind} {name}"), ownership::hash(&written.metadata));
        Ok(())
    }

    /// Has the plan of the target checked: by what answers at once, else by a Job.
    async fn start_check(&self, job: &Job, scene: &Scene, status: &StreamingJobStatus) -> Result<(), ExecuteError> {
        let Some(statements) = &scene.statements else { return Ok(()) };
        let revision = names::revision(&job.name, &job.spec, statements);
        let image = scene.observed.image.clone();
        let plan = self.plan(job, &job.spec, statements, &revision, &image);
        let key = names::check_job(&revision, &image);
        if !self.may_check_again(&job.uid) {
            return Ok(());
        }
        let settings = plan.settings(&job.spec);
        if let Some(account) = settings.iter().find(|object| object["kind"] == "ServiceAccount") {
            self.apply(job, account).await?;
        }
        if let Some(message) = self.dry_run(&plan).await? {
            self.remember_check(&job.uid, &key, Check::Forbidden(message));
            return Ok(());
        }
        if let Some(reply) = self.ask_plan(job, scene, status, &image, statements).await {
            self.remember_check(&job.uid, &key, Check::Done(reply));
            return Ok(());
        }
        let jobs = self.api("batch/v1", "Job", &job.namespace);
        if matches!(scene.observed.check, Check::Broken(_)) {
            self.forget_checks(&job.uid);
            gone(jobs.delete(&key, &DeleteParams::background()).await.map(drop))
                .or_else(at(format!("deleting the Job {key}")))?;
        }
        self.apply_revision(job, &plan).await?;
        let object: DynamicObject =
            serde_json::from_value(plan.check_job()).map_err(|error| ExecuteError::Refused(error.to_string()))?;
        match jobs.create(&PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() }, &object).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
            Err(error) => at(format!("writing the Job {key}"))(error),
        }
    }

    /// Has the API server judge the worker's pod and the StatefulSet without making them; what it says against one, if it does.
    async fn dry_run(&self, plan: &Plan<'_>) -> Result<Option<String>, ExecuteError> {
        let pod = plan.pod();
        if let Err(error) = serde_json::from_value::<Pod>(pod.clone()) {
            return Ok(Some(format!("spec.template makes no pod: {error}")));
        }
        let asking = "asking whether the namespace takes the worker's pod";
        if let Some(message) = self.dry_run_of(&Pod::url_path(&(), Some(plan.namespace)), &pod, asking).await? {
            return Ok(Some(message));
        }
        // A StatefulSet is judged by other rules than its pod, and it can be written only when the worker that runs is gone.
        let path = StatefulSet::url_path(&(), Some(plan.namespace));
        self.dry_run_of(&path, &plan.set_for_dry_run(), "asking whether the namespace takes the StatefulSet").await
    }

    async fn dry_run_of(&self, path: &str, object: &Value, asking: &str) -> Result<Option<String>, ExecuteError> {
        // As it was rendered, and strictly: a field that no object of its kind has would be dropped in silence.
        let params = PostParams { dry_run: true, field_manager: Some(FIELD_MANAGER.to_owned()) };
        let mut request = match Request::new(path).create(&params, object.to_string().into_bytes()) {
            Ok(request) => request,
            Err(error) => return at(asking)(kube::Error::BuildRequest(error)),
        };
        if let Ok(uri) = format!("{}&fieldValidation=Strict", request.uri()).parse() {
            *request.uri_mut() = uri;
        }
        match self.client.request::<Value>(request).await {
            Ok(_) => Ok(None),
            // The operator's own rights, not the job's doing.
            Err(kube::Error::Api(status)) if status.code == 403 && status.message.contains("cannot create resource") => {
                at(asking)(kube::Error::Api(status))
            }
            Err(kube::Error::Api(status)) if matches!(status.code, 400 | 403 | 422) => {
                let error = ExecuteError::Kube { what: String::new(), error: Box::new(kube::Error::Api(status.clone())) };
                if error.is_namespace_terminating() {
                    return Err(error);
                }
                // Quota is a matter of the moment, and of the real pod.
                Ok((!status.message.contains("exceeded quota")).then(|| status.message.clone()))
            }
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(None),
            Err(error) => at(asking)(error),
        }
    }

    /// Asks the running worker, if its image is the one that would run; else the planner, if its image is.
    async fn ask_plan(
        &self,
        job: &Job,
        scene: &Scene,
        status: &StreamingJobStatus,
        image: &str,
        statements: &str,
    ) -> Option<tiderace_crds::admin::PlanCheckReply> {
        let request = plan_request(job, statements)?;
        let runs_same = status.deployed.as_ref().is_some_and(|d| d.image == image) && status.operation.is_none();
        if let (true, Some(worker), Worker::Status(_)) = (runs_same, &scene.worker, &scene.observed.worker) {
            match self.workers.check_plan(worker, &request).await {
                Ok(reply) => return Some(reply),
                Err(error) => {
                    tracing::info!(job = %job.name, namespace = %job.namespace, %error, "the worker didn't plan; a Job will")
                }
            }
        }
        let planner = self.options.planner_url.as_ref().filter(|_| image == self.options.default_image)?;
        match self.workers.check_plan_by(planner, &request).await {
            Ok(reply) => Some(reply),
            Err(error) => {
                tracing::info!(job = %job.name, namespace = %job.namespace, %error, "the planner didn't plan; a Job will");
                None
            }
        }
    }

    async fn forget_check_jobs(&self, job: &Job) -> Result<(), ExecuteError> {
        let jobs = self.api("batch/v1", "Job", &job.namespace);
        let found = jobs
            .list_metadata(&ListParams::default().labels(&format!("{JOB_LABEL}={}", job.name)))
            .await
            .or_else(at("listing checks"))?;
        for check in found.items {
            let name = check.metadata.name.unwrap_or_default();
            gone(jobs.delete(&name, &DeleteParams::background()).await.map(drop))
                .or_else(at(format!("deleting the Job {name}")))?;
        }
        Ok(())
    }

    /// ConfigMaps of revisions that nothing runs, plans or returns to.
    async fn forget_old_revisions(&self, job: &Job, status: &StreamingJobStatus) -> Result<(), ExecuteError> {
        let maps = self.api("v1", "ConfigMap", &job.namespace);
        let found = maps
            .list_metadata(&ListParams::default().labels(&format!("{JOB_LABEL}={}", job.name)))
            .await
            .or_else(at("listing revisions"))?;
        let in_use: Vec<&str> = [
            status.deployed.as_ref().map(|d| d.revision.as_str()),
            status.stable_revision.as_deref(),
            status.plan.as_ref().map(|p| p.revision.as_str()),
            status.operation.as_ref().and_then(|o| o.target_revision.as_deref()),
        ]
        .into_iter()
        .flatten()
        .collect();
        let mut unused: Vec<_> = found
            .items
            .into_iter()
            .filter(|map| map.metadata.owner_references.iter().flatten().any(|o| o.uid == job.uid))
            .filter(|map| !in_use.contains(&map.metadata.name.as_deref().unwrap_or_default()))
            .collect();
        unused.sort_by_key(|map| map.metadata.creation_timestamp.as_ref().map(|t| t.0));
        let excess = unused.len().saturating_sub(REVISIONS_KEPT);
        try_join_all(unused.iter().take(excess).map(|map| {
            let name = map.metadata.name.clone().unwrap_or_default();
            let maps = maps.clone();
            async move {
                gone(maps.delete(&name, &DeleteParams::default()).await.map(drop))
                    .or_else(at(format!("deleting the ConfigMap {name}")))
            }
        }))
        .await
        .map(drop)
    }
}

/// What a worker or planner is asked: the manifest with its statements inline.
#[must_use]
pub fn plan_request(job: &Job, statements: &str) -> Option<PlanCheckRequest> {
    let mut spec = names::worker_spec(&job.spec);
    spec.sql.inline = Some(statements.to_owned());
    spec.sql.config_map_key_ref = None;
    let manifest = json!({
        "apiVersion": names::API_VERSION, "kind": "StreamingJob",
        "metadata": {"name": job.name, "namespace": job.namespace}, "spec": spec,
    });
    serde_json::from_value(json!({"job": manifest})).ok()
}

/// What isn't there needs no deletion.
fn gone(result: Result<(), kube::Error>) -> Result<(), kube::Error> {
    match result {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        other => other,
    }
}

/// Contents of a Secret as text, for tests and for the webhook.
pub type Texts = BTreeMap<&'static str, String>;
