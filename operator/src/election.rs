//! Who leads: one Lease of `coordination.k8s.io/v1`, and a fencing token.
//!
//! A candidate remembers the Lease's version and *its own* clock's moment of seeing it change; it takes the Lease over only when it hasn't changed
//! for the Lease's duration by that clock, so clocks of different machines are never compared. Every write carries the version that was read: of two
//! candidates one is refused. `leaseTransitions` is the fencing token: it grows with each change of hands. A Lease that is made anew, after somebody
//! deleted the old one, begins with the seconds since 2024: more than any that the old one can have come to, so that workers take its holder's orders.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{Api, ObjectMeta, PostParams};
use tokio_util::sync::CancellationToken;

/// How long a Lease is good for after its last change.
pub const LEASE_DURATION: Duration = Duration::from_secs(15);
/// How long a leader that can't renew still acts: it must stop before another begins.
pub const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// How often it is looked at.
pub const RETRY: Duration = Duration::from_secs(2);

/// 2024-01-01T00:00:00Z, Unix seconds.
const TOKENS_SINCE: i64 = 1_704_067_200;

/// A clock of this machine that never goes back: the time since it was made.
#[derive(Clone)]
pub struct Monotonic(Arc<dyn Fn() -> Duration + Send + Sync>);

impl std::fmt::Debug for Monotonic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Monotonic({:?})", self.now())
    }
}

impl Default for Monotonic {
    fn default() -> Self {
        let start = Instant::now();
        Self(Arc::new(move || start.elapsed()))
    }
}

impl Monotonic {
    /// A test's: milliseconds that only grow.
    #[must_use]
    pub fn test(ms: Arc<AtomicU64>) -> Self {
        Self(Arc::new(move || Duration::from_millis(ms.load(Ordering::SeqCst))))
    }

    fn now(&self) -> Duration {
        (self.0)()
    }
}

/// Whether this process leads, for whoever is about to act.
#[derive(Clone, Debug)]
pub struct Leadership(Arc<State>);

#[derive(Debug)]
struct State {
    clock: Monotonic,
    /// Milliseconds of `clock` until which this process leads; 0 when it doesn't.
    until_ms: AtomicU64,
    token: AtomicU64,
    always: AtomicBool,
}

impl Default for Leadership {
    fn default() -> Self {
        Self::by_clock(Monotonic::default())
    }
}

impl Leadership {
    /// Not held yet, by a clock of the caller's.
    #[must_use]
    pub fn by_clock(clock: Monotonic) -> Self {
        let state = State { clock, until_ms: AtomicU64::new(0), token: AtomicU64::new(0), always: AtomicBool::new(false) };
        Self(Arc::new(state))
    }

    /// For a process that is alone, as in tests.
    #[must_use]
    pub fn alone() -> Self {
        let leadership = Self::default();
        leadership.0.always.store(true, Ordering::SeqCst);
        leadership
    }

    /// Whether this process may act now. A process that was paused finds its time over before it writes.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.0.always.load(Ordering::SeqCst) || self.elapsed_ms() < self.0.until_ms.load(Ordering::SeqCst)
    }

    /// How often the Lease had changed hands when this process got it.
    #[must_use]
    pub fn token(&self) -> u64 {
        self.0.token.load(Ordering::SeqCst)
    }

    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.0.clock.now().as_millis()).unwrap_or(u64::MAX)
    }

    fn now(&self) -> Duration {
        self.0.clock.now()
    }

    fn hold(&self, since: Duration, token: u64) {
        let until = since + RENEW_DEADLINE;
        self.0.token.store(token, Ordering::SeqCst);
        self.0.until_ms.store(u64::try_from(until.as_millis()).unwrap_or(u64::MAX), Ordering::SeqCst);
    }

    fn lose(&self) {
        self.0.until_ms.store(0, Ordering::SeqCst);
    }
}

/// A candidate for one Lease.
pub struct Candidate {
    leases: Api<Lease>,
    name: String,
    identity: String,
    leadership: Leadership,
    /// The version last seen, and when it was first seen.
    seen: Option<(String, Duration)>,
}

impl Candidate {
    /// A candidate by the name of `identity`, which no other process has.
    #[must_use]
    pub fn new(leases: Api<Lease>, name: &str, identity: &str, leadership: Leadership) -> Self {
        Self { leases, name: name.to_owned(), identity: identity.to_owned(), leadership, seen: None }
    }

    /// Tries once: `true` when this process leads now.
    pub async fn attempt(&mut self) -> Result<bool, kube::Error> {
        let asked = self.leadership.now();
        let Some(lease) = self.leases.get_opt(&self.name).await? else {
            let lease = Lease {
                metadata: ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() },
                spec: Some(self.claim(None)),
            };
            return self.written(asked, self.leases.create(&PostParams::default(), &lease).await);
        };
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        if self.seen.as_ref().is_none_or(|(seen, _)| *seen != version) {
            self.seen = Some((version, asked));
        }
        let spec = lease.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.clone().unwrap_or_default();
        let unchanged_for = self.seen.as_ref().map_or(Duration::ZERO, |(_, at)| asked.saturating_sub(*at));
        let duration =
            spec.lease_duration_seconds.and_then(|s| u64::try_from(s).ok()).map_or(LEASE_DURATION, Duration::from_secs);
        let is_mine = holder == self.identity;
        if !is_mine && !holder.is_empty() && unchanged_for < duration {
            self.leadership.lose();
            return Ok(false);
        }
        // With the version that was read: a second candidate is refused.
        let lease = Lease { metadata: lease.metadata, spec: Some(self.claim(Some(&spec))) };
        self.written(asked, self.leases.replace(&self.name, &PostParams::default(), &lease).await)
    }

    fn claim(&self, old: Option<&LeaseSpec>) -> LeaseSpec {
        let now = Some(MicroTime(Timestamp::now()));
        let is_mine = old.is_some_and(|s| s.holder_identity.as_deref() == Some(self.identity.as_str()));
        let first = i32::try_from(Timestamp::now().as_second() - TOKENS_SINCE).unwrap_or(i32::MAX / 2).max(1);
        let transitions = old.and_then(|s| s.lease_transitions);
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(LEASE_DURATION.as_secs()).ok(),
            acquire_time: if is_mine { old.and_then(|s| s.acquire_time.clone()) } else { now.clone() },
            renew_time: now,
            lease_transitions: Some(match transitions {
                Some(number) if is_mine => number,
                Some(number) => number.saturating_add(1),
                None => first,
            }),
            ..LeaseSpec::default()
        }
    }

    fn written(&mut self, asked: Duration, result: Result<Lease, kube::Error>) -> Result<bool, kube::Error> {
        match result {
            Ok(lease) => {
                let token = lease.spec.and_then(|s| s.lease_transitions).and_then(|n| u64::try_from(n).ok()).unwrap_or(0);
                self.seen = lease.metadata.resource_version.map(|version| (version, self.leadership.now()));
                self.leadership.hold(asked, token);
                Ok(true)
            }
            Err(kube::Error::Api(status)) if status.code == 409 => {
                self.leadership.lose();
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Waits until this process leads; `false` when it is to stop first.
    pub async fn wait(&mut self, stop: &CancellationToken) -> bool {
        loop {
            match self.attempt().await {
                Ok(true) => return true,
                Ok(false) => {}
                Err(error) => tracing::warn!(%error, lease = %self.name, "the lease can't be had"),
            }
            tokio::select! {
                () = stop.cancelled() => return false,
                () = tokio::time::sleep(RETRY) => {}
            }
        }
    }

    /// Renews until leadership is lost or the process is to stop; gives the Lease away in the second case.
    pub async fn keep(&mut self, stop: &CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return self.release().await,
                () = tokio::time::sleep(RETRY) => {}
            }
            match tokio::time::timeout(RENEW_DEADLINE, self.attempt()).await {
                Ok(Ok(true)) => {}
                Ok(Ok(false)) => return,
                Ok(Err(error)) => tracing::warn!(%error, lease = %self.name, "the lease can't be renewed"),
                Err(_) => tracing::warn!(lease = %self.name, "the API server doesn't answer"),
            }
            if !self.leadership.is_held() {
                return;
            }
        }
    }

    /// Gives the Lease away, so that another needn't wait until it has run out.
    pub async fn release(&mut self) {
        let was_held = self.leadership.is_held();
        self.leadership.lose();
        if !was_held {
            return;
        }
        let Ok(Some(mut lease)) = self.leases.get_opt(&self.name).await else { return };
        let Some(spec) = lease.spec.as_mut().filter(|s| s.holder_identity.as_deref() == Some(self.identity.as_str())) else {
            return;
        };
        spec.holder_identity = Some(String::new());
        if let Err(error) = self.leases.replace(&self.name, &PostParams::default(), &lease).await {
            tracing::info!(%error, lease = %self.name, "the lease wasn't given away; it runs out");
        }
    }
}
