//! What a person can see of the bridge: its log, its metrics, its health, its accounts.
//!
//! The other rooms report here and never ask back: nothing in this room decides anything. It looks
//! at no event, keeps no secret, and no part of it may slow the way of an event down. A counter is
//! an atomic, a condition is a short lock, and the HTTP server is bounded in connections and time.

pub mod accounts;
pub mod health;
pub mod http;
pub mod logs;
pub mod metrics;
pub mod process;
