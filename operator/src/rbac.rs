//! Every right the operator needs, in one table; the chart's roles are made from it.

use serde_json::{Value, json};

/// Where a right is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The operator's own namespace.
    Own,
    /// Every namespace with jobs.
    Jobs,
    /// The whole cluster; the operator does without where it isn't given.
    Cluster,
}

/// One line of the table.
#[derive(Clone, Copy, Debug)]
pub struct Right {
    /// Where.
    pub scope: Scope,
    /// API group.
    pub group: &'static str,
    /// Plural, with its subresource.
    pub resource: &'static str,
    /// What is done with it.
    pub verbs: &'static [&'static str],
    /// Why.
    pub why: &'static str,
}

const fn right(
    scope: Scope,
    group: &'static str,
    resource: &'static str,
    verbs: &'static [&'static str],
    why: &'static str,
) -> Right {
    Right { scope, group, resource, verbs, why }
}

/// The table.
pub const RIGHTS: &[Right] = &[
    right(Scope::Own, "coordination.k8s.io", "leases", &["get", "create", "update"], "election of the leader"),
    right(Scope::Own, "", "secrets", &["get", "create", "patch"], "the webhook's certificate"),
    right(
        Scope::Jobs,
        "tiderace.dev",
        "streamingjobs",
        &["get", "list", "watch", "patch", "delete"],
        "finalizer; deletion after its time",
    ),
    right(Scope::Jobs, "tiderace.dev", "streamingjobs/status", &["patch"], "status"),
    right(Scope::Jobs, "tiderace.dev", "streamingjobs/finalizers", &["update"], "owner references that block deletion"),
    right(Scope::Jobs, "tiderace.dev", "streamingsnapshots", &["get", "list", "watch"], "snapshots"),
    right(Scope::Jobs, "tiderace.dev", "streamingsnapshots/status", &["patch"], "status of snapshots"),
    right(Scope::Jobs, "apps", "statefulsets", &["get", "list", "watch", "create", "patch", "delete"], "workers"),
    right(Scope::Jobs, "batch", "jobs", &["get", "list", "watch", "create", "delete"], "checks of plans"),
    right(
        Scope::Jobs,
        "",
        "pods",
        &["get", "list", "watch", "create", "delete"],
        "workers; a dry run of their pod says what the namespace forbids",
    ),
    right(Scope::Jobs, "", "configmaps", &["get", "list", "watch", "create", "patch", "delete"], "statements; revisions"),
    right(
        Scope::Jobs,
        "",
        "secrets",
        &["get", "list", "watch", "create", "patch"],
        "certificates; whether secrets that jobs name are there",
    ),
    right(Scope::Jobs, "", "services", &["get", "list", "watch", "create", "patch"], "names of pods; admin API"),
    right(
        Scope::Jobs,
        "",
        "serviceaccounts",
        &["get", "list", "watch", "create", "patch"],
        "the account of workers, which has no rights",
    ),
    right(Scope::Jobs, "", "persistentvolumeclaims", &["get", "list", "watch", "patch", "delete"], "volumes"),
    right(
        Scope::Jobs,
        "policy",
        "poddisruptionbudgets",
        &["get", "list", "watch", "create", "patch", "delete"],
        "disruption budgets",
    ),
    right(
        Scope::Jobs,
        "networking.k8s.io",
        "networkpolicies",
        &["get", "list", "watch", "create", "patch", "delete"],
        "network policies",
    ),
    right(
        Scope::Jobs,
        "monitoring.coreos.com",
        "podmonitors",
        &["get", "list", "watch", "create", "patch", "delete"],
        "monitoring.podMonitor",
    ),
    right(Scope::Jobs, "events.k8s.io", "events", &["create", "patch"], "events"),
    right(Scope::Jobs, "", "events", &["get", "list", "create", "patch"], "why a pod waits"),
    right(Scope::Cluster, "storage.k8s.io", "storageclasses", &["get"], "whether the class that a job names is there"),
    right(Scope::Cluster, "apiextensions.k8s.io", "customresourcedefinitions", &["get"], "whether the definitions are there"),
    right(
        Scope::Cluster,
        "admissionregistration.k8s.io",
        "validatingwebhookconfigurations",
        &["get", "patch"],
        "the webhook's authority",
    ),
];

/// Rules of a Role for that scope, as RBAC has them.
#[must_use]
pub fn rules(scope: Scope) -> Vec<Value> {
    RIGHTS
        .iter()
        .filter(|right| right.scope == scope)
        .map(|right| json!({"apiGroups": [right.group], "resources": [right.resource], "verbs": right.verbs}))
        .collect()
}

/// All of them: `own`, `jobs`, `cluster`.
#[must_use]
pub fn all() -> Value {
    json!({"own": rules(Scope::Own), "jobs": rules(Scope::Jobs), "cluster": rules(Scope::Cluster)})
}

/// Whether the table allows a verb on a resource (with subresource) in some scope.
#[must_use]
pub fn allows(group: &str, resource: &str, verb: &str) -> bool {
    RIGHTS.iter().any(|right| right.group == group && right.resource == resource && right.verbs.contains(&verb))
}
