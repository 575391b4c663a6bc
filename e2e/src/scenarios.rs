//! What is tested. Each function is given a namespace of its own and says by an error what isn't as it should be.

use crate::runner::Scenario;

mod changes;
mod chaos;
mod faults;
mod helm;
mod life;
mod neighbours;
mod observability;
mod owned;
mod plugin;
mod rules;
mod storage;
mod tracing;

/// A scenario beside others.
macro_rules! shared {
    ($module:ident :: $function:ident) => {
        Scenario { name: stringify!($function), alone: false, run: |space| Box::pin($module::$function(space)) }
    };
}

/// A scenario that has the cluster to itself.
macro_rules! alone {
    ($module:ident :: $function:ident) => {
        Scenario { name: stringify!($function), alone: true, run: |space| Box::pin($module::$function(space)) }
    };
}

/// All scenarios, the long ones first: what runs side by side then ends together.
pub const ALL: &[Scenario] = &[
    shared!(faults::failing_job_uses_up_its_restarts),
    shared!(observability::dashboards_and_alerts_tell_the_truth),
    shared!(faults::missing_storage_class),
    shared!(faults::bad_image),
    shared!(life::example_writes_rows),
    shared!(life::suspend_and_resume),
    shared!(life::bounded_job_finishes),
    shared!(life::finished_job_goes_after_its_time),
    shared!(life::deadline_ends_a_job),
    shared!(life::deleted_in_each_state),
    shared!(changes::changed_sql_replaces_the_worker),
    shared!(changes::bad_sql_leaves_the_old_running),
    shared!(changes::webhook_refuses_bad_sql),
    shared!(changes::what_is_not_there_yet_is_refused),
    shared!(changes::other_managers),
    shared!(faults::killed_worker_comes_back),
    shared!(faults::exceptions_outlive_the_process),
    shared!(faults::deleted_pod_comes_back),
    shared!(faults::unschedulable_pod),
    shared!(faults::missing_secret),
    shared!(faults::template_that_breaks_the_security_standard),
    shared!(owned::deleted_objects_come_back),
    shared!(owned::changed_secret_and_statements),
    shared!(owned::objects_of_others_outlive_the_job),
    shared!(owned::template_of_the_stateful_set),
    shared!(plugin::plugin_commands),
    shared!(neighbours::seccomp_profile_of_the_node),
    shared!(neighbours::io_uring_by_seccomp_profile),
    shared!(helm::odd_values_are_refused),
    shared!(storage::volume_grows),
    shared!(storage::volume_outlives_the_job),
    shared!(rules::api_server_refuses_what_the_rules_refuse),
    alone!(life::ready_and_suspended_in_time),
    alone!(neighbours::monitoring_objects),
    alone!(neighbours::webhook_by_cert_manager),
    alone!(tracing::spans_reach_a_collector),
    alone!(chaos::operator_killed),
    alone!(chaos::api_server_killed),
    alone!(chaos::paused_operator_comes_back),
    alone!(chaos::deleted_while_the_operator_is_down),
    alone!(chaos::namespace_deleted),
    alone!(chaos::node_drained),
    alone!(chaos::node_killed),
    alone!(chaos::node_partitioned),
    alone!(helm::upgrade_restarts_no_worker),
    alone!(helm::uninstalled_operator_leaves_jobs_running),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_make_namespaces() {
        for scenario in ALL {
            assert!(scenario.name.len() <= 59, "{} is too long for a namespace", scenario.name);
            assert_eq!(ALL.iter().filter(|s| s.name == scenario.name).count(), 1, "{} is there twice", scenario.name);
        }
    }
}
