//! The election over the API server in memory, by a clock that the test moves.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kube::api::Api;
use proptest::prelude::*;
use serde_json::{Value, json};
use tiderace_operator::election::{Candidate, LEASE_DURATION, Leadership, Monotonic, RENEW_DEADLINE};

use crate::api_server::{ApiServer, Fault};

const LEASES: &str = "leases.coordination";

/// One process: its candidate, its clock, and whether it thinks that it leads.
struct Process {
    candidate: Candidate,
    leadership: Leadership,
    clock: Arc<AtomicU64>,
}

impl Process {
    /// Clocks of different processes begin anywhere: no two are ever compared.
    fn new(server: &ApiServer, name: &str, begin_ms: u64) -> Self {
        let clock = Arc::new(AtomicU64::new(begin_ms));
        let leadership = Leadership::by_clock(Monotonic::test(Arc::clone(&clock)));
        let leases = Api::namespaced(server.client(), "shop");
        Self { candidate: Candidate::new(leases, "operator", name, leadership.clone()), leadership, clock }
    }

    fn pass(&self, time: Duration) {
        self.clock.fetch_add(u64::try_from(time.as_millis()).unwrap(), Ordering::SeqCst);
    }

    async fn attempt(&mut self) -> bool {
        self.candidate.attempt().await.unwrap()
    }
}

fn lease(server: &ApiServer) -> Value {
    server.get(LEASES, "operator").unwrap()
}

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test]
async fn the_first_leads_and_the_second_waits_until_the_lease_has_run_out_by_its_own_clock() {
    let server = ApiServer::new();
    let (mut first, mut second) = (Process::new(&server, "a", 0), Process::new(&server, "b", 5_000_000));
    assert!(first.attempt().await && first.leadership.is_held());
    assert!(!second.attempt().await && !second.leadership.is_held());
    let token = first.leadership.token();
    // The first one renews: the second's patience begins anew each time.
    for _ in 0..20 {
        for process in [&mut first, &mut second] {
            process.pass(2 * SECOND);
        }
        assert!(first.attempt().await);
        assert!(!second.attempt().await);
    }
    assert_eq!(first.leadership.token(), token, "a renewal is no change of hands");
    // The first one falls silent.
    second.pass(LEASE_DURATION - SECOND);
    assert!(!second.attempt().await, "a second too early");
    second.pass(2 * SECOND);
    assert!(second.attempt().await && second.leadership.is_held());
    assert_eq!(second.leadership.token(), token + 1);
    assert_eq!(lease(&server)["spec"]["holderIdentity"], "b");
    // The first one comes back: its time was over before the second's began.
    first.pass(LEASE_DURATION);
    assert!(!first.leadership.is_held());
    assert!(!first.attempt().await && !first.leadership.is_held());
}

#[tokio::test]
async fn a_holder_that_cannot_renew_stops_before_another_may_begin() {
    let server = ApiServer::new();
    let mut holder = Process::new(&server, "a", 0);
    assert!(holder.attempt().await);
    server.state().fault = Fault::Always("leases", "update", 500);
    holder.pass(RENEW_DEADLINE - SECOND);
    assert!(holder.candidate.attempt().await.is_err());
    assert!(holder.leadership.is_held(), "an error alone loses nothing");
    holder.pass(2 * SECOND);
    assert!(!holder.leadership.is_held());
    assert!(RENEW_DEADLINE + 2 * SECOND < LEASE_DURATION);
}

#[tokio::test]
async fn of_two_that_take_over_at_once_one_is_refused() {
    let server = ApiServer::new();
    let mut holder = Process::new(&server, "a", 0);
    assert!(holder.attempt().await);
    let (mut second, mut third) = (Process::new(&server, "b", 0), Process::new(&server, "c", 0));
    assert!(!second.attempt().await && !third.attempt().await);
    for process in [&mut second, &mut third] {
        process.pass(LEASE_DURATION + SECOND);
    }
    let (one, other) = futures::join!(second.candidate.attempt(), third.candidate.attempt());
    assert!(one.unwrap() ^ other.unwrap(), "one of them leads");
    assert!(second.leadership.is_held() ^ third.leadership.is_held());
}

#[tokio::test]
async fn a_holder_whose_lease_was_written_by_another_leads_no_more_at_once() {
    let server = ApiServer::new();
    let mut holder = Process::new(&server, "a", 0);
    assert!(holder.attempt().await);
    let mut taken = lease(&server);
    taken["spec"]["holderIdentity"] = json!("b");
    server.apply(LEASES, taken);
    assert!(!holder.attempt().await);
    assert!(!holder.leadership.is_held());
}

#[tokio::test]
async fn a_lease_that_was_given_away_is_taken_without_waiting() {
    let server = ApiServer::new();
    let (mut first, mut second) = (Process::new(&server, "a", 0), Process::new(&server, "b", 0));
    assert!(first.attempt().await && !second.attempt().await);
    first.candidate.release().await;
    assert!(!first.leadership.is_held());
    assert!(second.attempt().await && second.leadership.is_held());
}

#[tokio::test]
async fn a_lease_that_was_deleted_comes_back_with_a_higher_token() {
    let server = ApiServer::new();
    let mut first = Process::new(&server, "a", 0);
    // As one that was made some time ago and changed hands since.
    assert!(first.attempt().await);
    let mut old = lease(&server);
    let made = old["spec"]["leaseTransitions"].as_i64().unwrap();
    old["spec"]["leaseTransitions"] = json!(made - 1000);
    server.apply(LEASES, old);
    server.delete(LEASES, "operator");
    let mut second = Process::new(&server, "b", 0);
    assert!(second.attempt().await);
    assert!(second.leadership.token() > u64::try_from(made - 1000).unwrap());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Processes that are paused, run at their own moments and lose calls: never do two lead at once, and tokens only grow.
    #[test]
    fn never_do_two_lead(steps in prop::collection::vec((0_usize..3, 0_u64..9_000, prop::bool::weighted(0.15)), 1..120)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let server = ApiServer::new();
            let mut processes: Vec<_> = [0, 777_000, 31].iter().enumerate().map(|(at, begin)| Process::new(&server, &format!("p{at}"), *begin)).collect();
            let mut highest = 0;
            for (who, ms, fails) in steps {
                // Time passes for all, by clocks that are never compared.
                for process in &processes {
                    process.pass(Duration::from_millis(ms));
                }
                if fails {
                    server.state().fault = Fault::Always("leases", "update", 500);
                }
                let outcome = processes[who].candidate.attempt().await;
                server.state().fault = Fault::None;
                let leaders: Vec<_> = processes.iter().filter(|p| p.leadership.is_held()).collect();
                assert!(leaders.len() <= 1, "{} lead", leaders.len());
                if matches!(outcome, Ok(true)) {
                    assert!(processes[who].leadership.token() >= highest, "a token went back");
                    highest = processes[who].leadership.token();
                }
            }
        });
    }
}
