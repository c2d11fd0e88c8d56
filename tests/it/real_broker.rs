//! The bridge as a process, before a real broker and a simulated Agora: what it promises, seen
//! from outside.
//!
//! Each test judges everything that was published against everything that Agora handed out
//! ([`crate::support::judge`]). The figures that some of them print (`--nocapture`) are for
//! people: a test never asserts a duration.

mod at_least_once;
mod away;
mod doubt;
mod duel;
mod end_to_end;
mod memory;
mod neighbours;
mod odd_bodies;
mod panics;
mod refusals;
mod refused;
mod repeats;
mod stops;
pub(crate) mod topics;

use std::time::Duration;

use serde_json::Value;

use crate::support::process::Bridge;
use crate::support::within;

/// For what takes seconds; on a machine that compiles at the same time it takes longer.
pub(crate) const LIMIT: Duration = Duration::from_secs(400);

/// Asks the bridge to stop and expects that nothing was left undone.
pub(crate) fn stop(bridge: &mut Bridge) {
    bridge.terminate();
    let status = bridge.wait(LIMIT);
    assert_eq!(status.code(), Some(0), "{}", bridge.log());
}

/// The sum of a column of the accounts over all App IDs and endpoints.
pub(crate) fn total(status: &Value, column: &str) -> i64 {
    accounts(status).iter().map(|account| figure(account, column)).sum()
}

/// The accounts in `/status.json`, one for each App ID and endpoint.
pub(crate) fn accounts(status: &Value) -> &[Value] {
    status["accounts"].as_array().expect("the accounts are a list")
}

/// A figure of an account.
pub(crate) fn figure(account: &Value, column: &str) -> i64 {
    account[column].as_i64().unwrap_or_else(|| panic!("no `{column}` in {account}"))
}

/// Waits until so many elements were received and nothing waits any more; the status then.
pub(crate) fn wait_for_balance(bridge: &Bridge, received: u64) -> Value {
    let mut last = Value::Null;
    let settled = within(LIMIT, || {
        last = bridge.status();
        let all = i64::try_from(received).expect("few") == total(&last, "received");
        (all && total(&last, "waiting") == 0).then_some(())
    });
    settled.unwrap_or_else(|late| panic!("{received} received, none waiting: {late}; {last:#}"));
    last
}
