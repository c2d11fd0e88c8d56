//! Checks whether an app's secret is well-formed, without sending a request.

use tokio::time::Instant;

use super::Finding;
use crate::agora::{Credentials, Moment, NoCredentials};
use crate::config::App;
use crate::model::Timestamp;

/// A finding if an app's secret is malformed, or may be.
pub(super) fn of(app: &App) -> Option<Finding> {
    let subject = format!("credentials of {}", app.app_id);
    let mut credentials = Credentials::new(app.app_id.clone(), app.auth.clone(), 0);
    let now = Moment { wall: Timestamp::default(), monotonic: Instant::now() };
    match credentials.proof(now) {
        Err(error) => {
            let remedy = match &error {
                NoCredentials::Unreadable { .. } => {
                    "make the file readable for the user that the bridge runs as"
                }
                NoCredentials::Malformed { .. } => "correct it; the app isn't polled until then",
            };
            Some(Finding::failed(subject, error, Some(remedy)))
        }
        Ok(_) => {
            let remedy = "correct it, unless Agora accepts it as it is";
            credentials.suspicion().map(|says| Finding::warning(subject, says, remedy))
        }
    }
}
