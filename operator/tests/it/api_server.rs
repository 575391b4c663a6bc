//! An API server in memory, with the controllers that a job needs, behind a kube client. It can fail any call, and notes every one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};

use axum::http::{Method, Request, Response};
use futures::future::BoxFuture;
use k8s_openapi::ByteString;
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tiderace_operator::count_requests::{Asked, asked};

/// Group and plural, namespace, name.
pub type Key = (String, String, String);

/// What the k-th call meets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// The connection breaks before the k-th call arrives, and every call after it: the operator's process is dead.
    DiesBefore(usize),
    /// The k-th call is done and its answer lost; every call after it is lost: the operator died waiting.
    DiesAfter(usize),
    /// The k-th call is answered with this status, once.
    Answers(usize, u16),
    /// Every call on this resource with this verb is answered with this status.
    Always(&'static str, &'static str, u16),
}

pub struct State {
    pub objects: BTreeMap<Key, Value>,
    pub calls: usize,
    pub fault: Fault,
    pub asked: Vec<Asked>,
    pub plan_is_good: bool,
    /// The pods' worker.
    pub worker: &'static str,
    /// Fields of a status that somebody has edited, and which an apply leaves as they are.
    pub edited: Value,
    version: u64,
    pub epochs: Vec<u64>,
}

#[derive(Clone)]
pub struct ApiServer(Arc<Mutex<State>>);

impl ApiServer {
    pub fn new() -> Self {
        let state = State {
            objects: BTreeMap::new(),
            calls: 0,
            fault: Fault::None,
            asked: Vec::new(),
            plan_is_good: true,
            worker: "Running",
            edited: Value::Null,
            version: 0,
            epochs: Vec::new(),
        };
        Self(Arc::new(Mutex::new(state)))
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// After a panic of who had locked it.
    pub fn forgive(&self) {
        self.0.clear_poison();
    }

    pub fn client(&self) -> Client {
        Client::new(self.clone(), "shop")
    }

    pub fn get(&self, plural: &str, name: &str) -> Option<Value> {
        self.state().objects.get(&(plural.to_owned(), "shop".to_owned(), name.to_owned())).cloned()
    }

    pub fn names(&self, plural: &str) -> Vec<String> {
        self.state().objects.keys().filter(|k| k.0 == plural).map(|k| k.2.clone()).collect()
    }

    /// What a user does by kubectl: not noted, never failed.
    pub fn apply(&self, plural: &str, object: Value) {
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        self.state().put(&(plural.to_owned(), "shop".to_owned(), name), object, false);
    }

    pub fn delete(&self, plural: &str, name: &str) {
        self.state().remove(&(plural.to_owned(), "shop".to_owned(), name.to_owned()), false);
    }

    /// What the controllers and kubelets do in a while.
    pub fn live(&self) {
        let mut state = self.state();
        let keys = |state: &State, plural: &str| state.objects.keys().filter(|k| k.0 == plural).cloned().collect::<Vec<_>>();
        for key in keys(&state, "jobs.batch") {
            let job = state.objects[&key].clone();
            if job["status"]["conditions"].is_array() {
                continue;
            }
            let reply = if state.plan_is_good {
                json!({"valid": true, "planHash": "sha256:1", "engineVersion": "0.1.0"})
            } else {
                json!({"valid": false, "engineVersion": "0.1.0", "errors": [{"code": "TR-1002", "message": "no column nope", "line": 2, "column": 8}]})
            };
            let code = i32::from(!state.plan_is_good);
            let pod = json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": format!("{}-x", key.2), "labels": {"batch.kubernetes.io/job-name": key.2}, "ownerReferences": [{"uid": job["metadata"]["uid"], "kind": "Job", "name": key.2, "apiVersion": "batch/v1"}]},
                "spec": {"containers": []},
                "status": {"containerStatuses": [{"name": "check", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                    "state": {"terminated": {"exitCode": code, "message": reply.to_string()}}}]},
            });
            state.put(&("pods".into(), key.1.clone(), format!("{}-x", key.2)), pod, false);
            let mut done = job;
            done["status"] = json!({"conditions": [{"type": if code == 0 { "Complete" } else { "Failed" }, "status": "True"}]});
            state.put(&key, done, true);
        }
        for key in keys(&state, "statefulsets.apps") {
            let set = state.objects[&key].clone();
            let pod_key = ("pods".to_owned(), key.1.clone(), format!("{}-0", key.2));
            if set["spec"]["template"].is_null() {
                continue; // a test's, of somebody else
            }
            let wants = set["spec"]["replicas"].as_u64().unwrap_or(1) > 0;
            if !wants {
                state.remove(&pod_key, true);
            } else if !state.objects.contains_key(&pod_key) {
                let mut pod = set["spec"]["template"].clone();
                let epoch: u64 = pod["metadata"]["labels"]["tiderace.dev/epoch"].as_str().unwrap().parse().unwrap();
                let others = state
                    .objects
                    .iter()
                    .filter(|(k, p)| k.0 == "pods" && p["metadata"]["labels"]["tiderace.dev/epoch"].is_string());
                assert_eq!(others.count(), 0, "two workers at once");
                state.epochs.push(epoch);
                state.worker = if state.worker == "Stopped" { "Running" } else { state.worker };
                pod["apiVersion"] = json!("v1");
                pod["kind"] = json!("Pod");
                pod["metadata"]["name"] = json!(pod_key.2);
                pod["metadata"]["ownerReferences"] =
                    json!([{"uid": set["metadata"]["uid"], "kind": "StatefulSet", "name": key.2, "apiVersion": "apps/v1"}]);
                pod["status"] = json!({
                    "podIP": "127.0.0.1",
                    "conditions": [{"type": "Ready", "status": "True"}],
                    "containerStatuses": [{"name": "worker", "image": "", "imageID": "", "ready": true, "restartCount": 0, "state": {"running": {}}}],
                });
                state.put(&pod_key, pod, true);
            }
        }
    }

    fn answer(
        &self,
        method: &Method,
        path: &str,
        query: &str,
        metadata_only: bool,
        content_type: &str,
        body: &[u8],
    ) -> Option<(u16, Value)> {
        let mut state = self.state();
        state.calls += 1;
        let call = state.calls;
        let asked = asked(method, path, query)?;
        state.asked.push(asked.clone());
        match &state.fault {
            Fault::DiesBefore(k) if call >= *k => return None,
            Fault::DiesAfter(k) if call > *k => return None,
            Fault::Answers(k, code) if call == *k => return Some((*code, status(*code, "made to fail"))),
            Fault::Always(resource, verb, code) if *resource == asked.resource && *verb == asked.verb => {
                return Some((
                    *code,
                    status(*code, &format!("{resource} is forbidden: User \"operator\" cannot create resource")),
                ));
            }
            _ => {}
        }
        let lost = matches!(&state.fault, Fault::DiesAfter(k) if call == *k);
        let (code, mut value) = state.handle(method, path, query, content_type, body);
        if metadata_only && code < 300 {
            value = match value.get("items").and_then(Value::as_array) {
                Some(items) => {
                    json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadataList", "metadata": value["metadata"],
                    "items": items.iter().map(partial).collect::<Vec<_>>()})
                }
                None => partial(&value),
            };
        }
        (!lost).then_some((code, value))
    }
}

fn partial(object: &Value) -> Value {
    json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": object["metadata"]})
}

fn status(code: u16, message: &str) -> Value {
    let reason = match code {
        403 => "Forbidden",
        404 => "NotFound",
        409 => "Conflict",
        422 => "Invalid",
        _ => "InternalError",
    };
    json!({"apiVersion": "v1", "kind": "Status", "status": "Failure", "message": message, "reason": reason, "code": code})
}

impl State {
    fn handle(&mut self, method: &Method, path: &str, query: &str, content_type: &str, body: &[u8]) -> (u16, Value) {
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let (group, mut rest) = if parts[0] == "api" { ("", &parts[2..]) } else { (parts[1], &parts[3..]) };
        let mut namespace = "";
        if rest[0] == "namespaces" && rest.len() > 2 {
            namespace = rest[1];
            rest = &rest[2..];
        }
        let plural =
            if group.is_empty() { rest[0].to_owned() } else { format!("{}.{}", rest[0], group.split('.').next().unwrap()) };
        let key = |name: &str| (plural.clone(), namespace.to_owned(), name.to_owned());
        let is_status = rest.get(2) == Some(&"status");
        let body = || serde_json::from_slice::<Value>(body).unwrap_or(Value::Null);
        match (method.as_str(), rest.get(1)) {
            ("GET", None) => (200, self.list(&plural, namespace, query)),
            ("GET", Some(name)) => match self.objects.get(&key(name)) {
                Some(object) => (200, object.clone()),
                None => (404, status(404, &format!("{plural} {name} not found"))),
            },
            ("POST", None) => {
                let object = body();
                let name = object["metadata"]["name"].as_str().unwrap_or("generated").to_owned();
                if query.contains("dryRun=All") {
                    return (201, object);
                }
                if plural == "events" || plural == "events.events" {
                    return (201, object);
                }
                if self.objects.contains_key(&key(&name)) {
                    return (409, status(409, &format!("{plural} {name} already exists")));
                }
                (201, self.put(&key(&name), object, false))
            }
            ("PATCH", Some(name)) => self.patch(&key(name), body(), content_type, is_status),
            ("PUT", Some(name)) => {
                let object = body();
                let Some(found) = self.objects.get(&key(name)) else { return (404, status(404, "not found")) };
                let version = &object["metadata"]["resourceVersion"];
                if !version.is_null() && *version != found["metadata"]["resourceVersion"] {
                    return (409, status(409, "the object has been modified"));
                }
                (200, self.put(&key(name), object, false))
            }
            ("DELETE", Some(name)) => {
                let options = body();
                let Some(found) = self.objects.get(&key(name)) else { return (404, status(404, "not found")) };
                let uid = &options["preconditions"]["uid"];
                if !uid.is_null() && *uid != found["metadata"]["uid"] {
                    return (409, status(409, "the uid is another"));
                }
                let orphan = options["propagationPolicy"] == "Orphan";
                self.remove(&key(name), orphan);
                (200, status(200, "deleted"))
            }
            _ => (405, status(405, "no such method")),
        }
    }

    fn list(&self, plural: &str, namespace: &str, query: &str) -> Value {
        let query = query.replace("%3D", "=").replace("%2C", ",").replace("%2F", "/");
        let after = |name: &str| query.split('&').find_map(|part| part.strip_prefix(name)).unwrap_or_default().to_owned();
        let (labels, fields) = (after("labelSelector="), after("fieldSelector="));
        let items: Vec<Value> = self
            .objects
            .iter()
            .filter(|(k, _)| k.0 == plural && k.1 == namespace)
            .map(|(_, o)| o.clone())
            .filter(|o| {
                labels.split(',').filter(|l| !l.is_empty()).all(|l| {
                    let (name, value) = l.split_once('=').unwrap();
                    o["metadata"]["labels"][name] == value
                })
            })
            .filter(|_| fields.is_empty())
            .collect();
        json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": self.version.to_string()}, "items": items})
    }

    /// Operations of a JSON patch: those that the operator uses, on whole fields.
    fn json_patch(&mut self, key: &Key, operations: &Value, is_status: bool) -> (u16, Value) {
        let Some(mut object) = self.objects.get(key).cloned() else { return (404, status(404, "not found")) };
        for operation in operations.as_array().unwrap() {
            let value = operation["value"].clone();
            match operation["path"].as_str().unwrap() {
                "/metadata/resourceVersion" if value != object["metadata"]["resourceVersion"] => {
                    return (409, status(409, "the object has been modified"));
                }
                "/metadata/resourceVersion" => {}
                "/metadata/managedFields" => object["metadata"]["managedFields"] = value,
                "/status" => {
                    self.edited = Value::Null;
                    object["status"] = value;
                }
                other => panic!("no operation on {other}"),
            }
        }
        (200, self.put(key, object, is_status))
    }

    fn patch(&mut self, key: &Key, change: Value, content_type: &str, is_status: bool) -> (u16, Value) {
        if content_type.contains("json-patch") {
            return self.json_patch(key, &change, is_status);
        }
        let is_apply = content_type.contains("apply-patch");
        let Some(old) = self.objects.get(key).cloned() else {
            if is_apply && !is_status {
                return (201, self.put(key, change, false));
            }
            return (404, status(404, "not found"));
        };
        let version = &change["metadata"]["resourceVersion"];
        if !version.is_null() && *version != old["metadata"]["resourceVersion"] {
            return (409, status(409, "the object has been modified"));
        }
        let mut new = old.clone();
        if is_status {
            new["status"] = change["status"].clone();
            if !self.edited.is_null() {
                merge(&mut new["status"], &self.edited);
            }
        } else {
            let mut change = change;
            if let Some(metadata) = change["metadata"].as_object_mut() {
                metadata.remove("resourceVersion");
                metadata.remove("uid");
            }
            if let Some(object) = change.as_object_mut() {
                object.remove("status");
            }
            merge(&mut new, &change);
            if key.0 == "configmaps" && old["immutable"] == true && new["data"] != old["data"] {
                return (422, status(422, "data: field is immutable when `immutable` is set"));
            }
            if key.0 == "statefulsets.apps" && is_apply {
                // All is the manager's now that forces it.
                new["metadata"]["managedFields"] =
                    json!([{"manager": "tiderace-operator", "operation": "Apply", "fieldsV1": {"f:spec": {}}}]);
            }
            if key.0 == "statefulsets.apps" {
                for field in ["volumeClaimTemplates", "selector", "serviceName", "podManagementPolicy"] {
                    if new["spec"][field] != old["spec"][field] {
                        return (422, status(422, &format!("spec.{field} can't change")));
                    }
                }
            }
        }
        (200, self.put(key, new, is_status))
    }

    pub fn put(&mut self, key: &Key, mut object: Value, is_status: bool) -> Value {
        if let Some(text) = object.as_object_mut().and_then(|o| o.remove("stringData")) {
            for (name, value) in text.as_object().unwrap() {
                object["data"][name] = serde_json::to_value(ByteString(value.as_str().unwrap().as_bytes().to_vec())).unwrap();
            }
        }
        let old = self.objects.get(key).cloned();
        let metadata = &mut object["metadata"];
        metadata["name"] = json!(key.2);
        metadata["namespace"] = json!(key.1);
        match &old {
            Some(old) => {
                for field in ["uid", "creationTimestamp", "generation", "resourceVersion", "deletionTimestamp"] {
                    if !old["metadata"][field].is_null() {
                        metadata[field] = old["metadata"][field].clone();
                    }
                }
                if key.0 == "streamingjobs.tiderace" && metadata["finalizers"].is_null() {
                    metadata["finalizers"] = old["metadata"]["finalizers"].clone();
                }
                if !is_status && object["status"].is_null() && !old["status"].is_null() {
                    object["status"] = old["status"].clone();
                }
                if object == *old {
                    return object;
                }
                if object["spec"] != old["spec"] {
                    object["metadata"]["generation"] = json!(old["metadata"]["generation"].as_i64().unwrap_or(1) + 1);
                }
            }
            None => {
                metadata["uid"] = json!(format!("uid-{}", self.version));
                metadata["generation"] = json!(1);
                metadata["creationTimestamp"] = json!("2026-11-21T12:00:00Z");
            }
        }
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let is_dead = !object["metadata"]["deletionTimestamp"].is_null()
            && object["metadata"]["finalizers"].as_array().is_none_or(Vec::is_empty);
        self.objects.insert(key.clone(), object.clone());
        if is_dead {
            self.collect(key);
        }
        object
    }

    pub fn remove(&mut self, key: &Key, orphan: bool) {
        let Some(object) = self.objects.get_mut(key) else { return };
        if object["metadata"]["finalizers"].as_array().is_some_and(|f| !f.is_empty()) {
            if object["metadata"]["deletionTimestamp"].is_null() {
                object["metadata"]["deletionTimestamp"] = json!("2026-11-21T12:00:00Z");
                object["metadata"]["generation"] = json!(object["metadata"]["generation"].as_i64().unwrap_or(1) + 1);
                self.version += 1;
                let version = self.version.to_string();
                self.objects.get_mut(key).unwrap()["metadata"]["resourceVersion"] = json!(version);
            }
            return;
        }
        if orphan {
            self.objects.remove(key);
        } else {
            self.collect(key);
        }
    }

    /// Takes an object away, and what it owns.
    fn collect(&mut self, key: &Key) {
        let Some(object) = self.objects.remove(key) else { return };
        let uid = object["metadata"]["uid"].clone();
        let owned: Vec<Key> = self
            .objects
            .iter()
            .filter(|(_, o)| o["metadata"]["ownerReferences"].as_array().into_iter().flatten().any(|r| r["uid"] == uid))
            .map(|(k, _)| k.clone())
            .collect();
        for key in owned {
            self.collect(&key);
        }
    }
}

fn merge(to: &mut Value, from: &Value) {
    match (to, from) {
        (Value::Object(to), Value::Object(from)) => {
            for (key, value) in from {
                if value.is_null() {
                    to.remove(key);
                } else {
                    merge(to.entry(key.clone()).or_insert(Value::Null), value);
                }
            }
        }
        (to, from) => *to = from.clone(),
    }
}

impl tower::Service<Request<Body>> for ApiServer {
    type Response = Response<Body>;
    type Error = std::io::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let server = self.clone();
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let body = body.collect_bytes().await.map_err(std::io::Error::other)?;
            let header = |name: &str| parts.headers.get(name).and_then(|h| h.to_str().ok()).unwrap_or_default().to_owned();
            let metadata_only = header("accept").contains("PartialObjectMetadata");
            let answer = server.answer(
                &parts.method,
                parts.uri.path(),
                parts.uri.query().unwrap_or_default(),
                metadata_only,
                &header("content-type"),
                &body,
            );
            let Some((code, value)) = answer else { return Err(std::io::Error::other("the connection broke")) };
            Response::builder()
                .status(code)
                .header("content-type", "application/json")
                .body(Body::from(serde_json::to_vec(&value).unwrap()))
                .map_err(std::io::Error::other)
        })
    }
}
