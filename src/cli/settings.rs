//! Loads the configuration for the commands.

use std::ffi::OsString;
use std::path::Path;

use super::Failure;
use crate::config;
use crate::config::Settings;

/// Reads the configuration.
pub(super) fn load(file: Option<&Path>) -> Result<Settings, Failure> {
    config::load(file, environment()).map_err(|faults| Failure::configuration(&faults))
}

/// Environment variables whose name and value are valid Unicode.
pub(super) fn environment() -> impl Iterator<Item = (String, String)> {
    let text = |(name, value): (OsString, OsString)| {
        Some((name.into_string().ok()?, value.into_string().ok()?))
    };
    std::env::vars_os().filter_map(text)
}
