//! The tests of the whole: one binary, so that one broker serves them all and is linked once.
//!
//! [`support`] starts what they need: a Kafka broker, the bridge as a process, a consumer that
//! verifies, a judge. A test that takes its broker away lives in [`own_broker`], by which name
//! `tests/run` leaves it out where a Kafka was given.

mod campaign;
mod check;
mod corpus;
mod deployment;
mod fixtures;
mod http;
mod injected;
mod journal;
mod own_broker;
mod real_broker;
mod rooms;
mod simulated;
mod stalled_log;
mod support;
mod systemd;
mod tokens;
mod tools;
