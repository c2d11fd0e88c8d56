//! Estimates the number of requests that an app needs.

use std::time::Duration;

use super::Finding;
use crate::config::App;

/// Fraction of the rate limit that idle feeds may use. Above it, too little is left for feeds in
/// need.
const SHARE: f64 = 0.9;

const DAY: f64 = 86_400.0;

/// The app's request rate while no events happen, and its limit.
pub(super) fn of(app: &App, longest_interval: Duration) -> Finding {
    let feeds = app.regions.len() * app.endpoints.len();
    let ceiling = app.requests_per_second.get();
    let count = u32::try_from(feeds).unwrap_or(u32::MAX);
    let at_rest = f64::from(count) / longest_interval.as_secs_f64();
    let subject = format!("app {}", app.app_id);
    let limit = SHARE * f64::from(ceiling);
    if at_rest > limit {
        let says = format!(
            "{feeds} feeds polled every {longest_interval:?} need {at_rest:.1} requests a second, \
             but the limit is {ceiling}: they will be polled less often"
        );
        let remedy = "raise poll.longest_interval, or drain fewer regions or endpoints";
        return Finding::warning(subject, says, remedy);
    }
    let feeds = if feeds == 1 { "1 feed".to_owned() } else { format!("{feeds} feeds") };
    let a_day = at_rest * DAY;
    let says = format!(
        "{feeds}; {at_rest:.1} requests a second when idle ({a_day:.0} a day), at most {ceiling}"
    );
    Finding::ok(subject, says)
}
