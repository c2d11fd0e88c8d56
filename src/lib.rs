//! Moves Agora RTM (Signaling) events from two destructive-read endpoints into Kafka, exactly once.
//!
//! `ARCHITECTURE.md` describes the way of an event and what each room is for; this file only lists
//! the rooms.

pub mod agora;
pub mod audit;
mod backoff;
pub mod check;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod error;
pub mod forwarder;
pub mod journal;
pub mod kafka;
pub mod memory;
pub mod model;
pub mod observe;
pub mod plan;
pub mod poller;
pub mod publisher;
pub mod records;
pub mod schedule;
pub mod simulator;
