//! Observability of the bridge: its log, metrics, health and accounts.
//!
//! The other rooms report to this one, and nothing here affects what they do. It never looks into
//! events, keeps no secrets, and must not slow the way of an event down: a counter is an atomic, a
//! condition is a short lock, and the HTTP server has limited connections and timeouts.

pub mod accounts;
pub mod health;
pub mod http;
pub mod logs;
pub mod metrics;
pub mod process;
