//! Waiting for what must become true.

use std::fmt::Display;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

/// How long to pause between two looks.
const PAUSE: Duration = Duration::from_millis(200);

/// Looks until `look` gives a value, and gives that. An error means "not yet": the API server may be away, the object not there.
/// After `within` it gives up and says what was waited for, and why the last look was not enough.
pub async fn until<T>(what: impl Display, within: Duration, mut look: impl AsyncFnMut() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        // A look that hangs (a cut-off API server) must not outlive the deadline by much.
        let last = match tokio::time::timeout(within.max(Duration::from_secs(5)), look()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => error,
            Err(_) => anyhow!("the look itself took too long"),
        };
        if start.elapsed() >= within {
            return Err(last.context(format!("not within {within:?}: {what}")));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Seconds, shorter.
#[must_use]
pub const fn secs(count: u64) -> Duration {
    Duration::from_secs(count)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[tokio::test]
    async fn gives_the_first_value_or_the_last_reason() {
        let mut looks = 0;
        let value = until("three looks", secs(5), async || {
            looks += 1;
            if looks == 3 { Ok(looks) } else { Err(anyhow!("only {looks}")) }
        });
        assert_eq!(value.await.unwrap(), 3);
        let error = until::<()>("never", Duration::ZERO, async || Err(anyhow!("because"))).await.unwrap_err();
        assert_eq!(format!("{error:#}"), "not within 0ns: never: because");
    }
}
