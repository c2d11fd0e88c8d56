//! The cost of reporting a failure, where many conditions are registered and many of them fail.

use std::time::Duration;

use agora_rtm_bridge::model::Clock;
use agora_rtm_bridge::observe::health::{Condition, Health};
use tokio::time::Instant;

use super::part::Offer;

/// How often each failure is reported again.
const AGAIN: u32 = 20;

/// Mean time of a [`Condition::failing`] call that repeats a known failure, with the conditions of
/// this many apps; `None` if no app fails.
pub(crate) fn failing_call(offer: &Offer) -> Option<Duration> {
    let health = Health::new(Clock::system());
    let of_app = |app: usize| {
        // The conditions of a real process, by their names: those of each app and its two feeds.
        for name in ["credentials", "token", "journal"] {
            health.condition(name, format!("app-{app}"));
        }
        ["user_events", "channel_events"]
            .map(|endpoint| health.condition("agora", format!("app-{app}/default/{endpoint}")))
    };
    let conditions: Vec<Condition> = (0..offer.apps).flat_map(of_app).collect();
    let of_feeds = conditions.chunks(2).enumerate();
    let failing: Vec<&Condition> =
        of_feeds.filter(|(app, _)| offer.fails(*app)).flat_map(|(_, feeds)| feeds).collect();
    let say = |round: u32| {
        for (feed, condition) in failing.iter().enumerate() {
            condition.failing(format_args!("Agora refuses feed {feed}, {round} times so far"));
        }
    };
    say(0);
    let begun = Instant::now();
    (1..=AGAIN).for_each(say);
    let calls = AGAIN * u32::try_from(failing.len()).expect("there are thousands");
    (calls > 0).then(|| begun.elapsed() / calls)
}
