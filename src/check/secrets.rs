//! Whether the secret of an app can be what Agora handed out, before anybody is asked.

use tokio::time::Instant;

use super::Finding;
use crate::agora::{Credentials, Moment, NoCredentials};
use crate::config::App;
use crate::model::Timestamp;

/// What is wrong with an app's secret, or may be.
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
                NoCredentials::Malformed { .. } => {
                    "the app is not asked for until this is corrected"
                }
            };
            Some(Finding::failed(subject, error, Some(remedy)))
        }
        Ok(_) => {
            let remedy = "correct it, unless Agora accepts it as it is";
            credentials.suspicion().map(|says| Finding::warning(subject, says, remedy))
        }
    }
}
