//! The verdict, for people and for programs.

use std::time::Duration;

use indicatif::HumanCount;
use serde::Serialize;

use super::{Plan, Remedies};
use crate::model::BUFFER_LIMIT;
use crate::plan::Tally;

/// The verdict.
#[derive(Debug, Serialize)]
pub(super) struct PlanReport {
    /// Whether nothing was lost.
    pub(super) sustainable: bool,
    /// The arguments.
    rate: f64,
    split: f64,
    burst: u32,
    trials: u32,
    seconds: u32,
    /// Events that happened, over all trials.
    events: u64,
    /// The fraction of them that was overwritten before it was fetched.
    pub(super) lost_share: f64,
    lost_per_minute: f64,
    requests_per_second: f64,
    most_requests_in_a_second: u64,
    refused_requests: u64,
    age_p50_ms: Option<u64>,
    pub(super) age_p99_ms: Option<u64>,
    fullest_buffer: u64,
    /// Searched only if the load is not sustainable; `None` also if no rate is.
    pub(super) largest_sustainable_rate: Option<f64>,
    /// Suggested remedies.
    advice: Vec<String>,
}

// === impl Report ===

impl PlanReport {
    /// Builds the report; with `remedies`, it includes advice.
    pub(super) fn new(plan: &Plan, tally: &Tally, remedies: Option<Remedies>) -> Self {
        let millis = |age: Option<Duration>| age.and_then(|it| u64::try_from(it.as_millis()).ok());
        let minutes = tally.measured.as_secs_f64() / 60.0;
        let largest = remedies.map(|it| it.largest_rate).filter(|rate| *rate >= 1.0);
        Self {
            sustainable: tally.measured_overwritten == 0,
            rate: plan.rate,
            split: plan.split,
            burst: plan.burst.map_or(0, Into::into),
            trials: plan.seeds,
            seconds: plan.seconds,
            events: tally.measured_events,
            lost_share: tally.measured_loss(),
            lost_per_minute: tally.measured_overwritten as f64 / minutes.max(f64::MIN_POSITIVE),
            requests_per_second: tally.requests_per_second(),
            most_requests_in_a_second: tally.requests.most_in_a_second,
            refused_requests: tally.requests.over_limit,
            age_p50_ms: millis(tally.ages.quantile(0.5)),
            age_p99_ms: millis(tally.ages.quantile(0.99)),
            fullest_buffer: tally.events.fullest,
            largest_sustainable_rate: largest.map(two_digits),
            advice: remedies.map_or_else(Vec::new, |it| advice(plan, it)),
        }
    }

    /// For programs.
    pub(super) fn json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("numbers and texts are JSON");
        text.push('\n');
        text
    }

    /// For people: the verdict in the first line.
    pub(super) fn text(&self) -> String {
        let age = |millis: Option<u64>| match millis {
            Some(millis) => format!("{} ms", HumanCount(millis)),
            None => "–".to_owned(),
        };
        let refused = match self.refused_requests {
            0 => String::new(),
            refused => format!("; {} refused (429)", HumanCount(refused)),
        };
        let rows = [
            (
                "requests a second",
                format!(
                    "{:.1}, at most {} in any{refused}",
                    self.requests_per_second, self.most_requests_in_a_second
                ),
            ),
            (
                "age of an event",
                format!("p50 {}, p99 {}", age(self.age_p50_ms), age(self.age_p99_ms)),
            ),
            ("lost", self.lost()),
            (
                "fullest buffer",
                format!("{} of {}", HumanCount(self.fullest_buffer), HumanCount(BUFFER_LIMIT)),
            ),
        ];
        let mut text = format!("{}\n\n", self.verdict());
        for (name, value) in rows {
            text.push_str(&format!("  {name:<18} {value}\n"));
        }
        let (trials, seconds) = (HumanCount(self.trials.into()), self.seconds);
        text.push_str(&format!(
            "\n{trials} trials of {seconds} s each, after the load had grown to its rate within \
             5 s: a jump from\nrest to thousands a second would be a burst.\n"
        ));
        for sentence in &self.advice {
            text.push_str(&format!("\n* {sentence}"));
        }
        if !self.advice.is_empty() {
            text.push('\n');
        }
        text
    }

    fn verdict(&self) -> String {
        let rate = HumanCount(whole(self.rate));
        let bursts = match self.burst {
            0 => String::new(),
            burst => format!(" with bursts of {}", HumanCount(burst.into())),
        };
        if self.sustainable {
            return format!("Sustainable: no events are lost at {rate} events a second{bursts}.");
        }
        let (share, a_minute) = (percent(self.lost_share), self.lost_a_minute());
        format!(
            "Not sustainable: {share} of {rate} events a second{bursts} are lost, {a_minute} a minute."
        )
    }

    fn lost(&self) -> String {
        if self.sustainable {
            return "nothing".to_owned();
        }
        format!("{}, {} events a minute", percent(self.lost_share), self.lost_a_minute())
    }

    fn lost_a_minute(&self) -> HumanCount {
        HumanCount(whole(self.lost_per_minute.ceil()))
    }
}

/// Which changes would help, and which would not.
fn advice(plan: &Plan, remedies: Remedies) -> Vec<String> {
    let mut advice = Vec::new();
    let burst = plan.burst.map_or(0, |it| u64::from(it.get()));
    if let Some(over @ 1..) = burst.checked_sub(BUFFER_LIMIT) {
        let (keeps, burst, over) = (HumanCount(BUFFER_LIMIT), HumanCount(burst), HumanCount(over));
        advice.push(format!(
            "Agora keeps {keeps} events per endpoint: a burst of {burst} always loses {over}."
        ));
    } else if burst > 0 && plan.longest_interval > plan.shortest_interval {
        advice.push(
            "A shorter --longest-interval lets fewer events gather before a burst, at the cost of \
             more requests."
                .to_owned(),
        );
    }
    if plan.requests_per_second < 10 {
        advice.push("Raise --requests-per-second: Agora allows 10.".to_owned());
    }
    if remedies.largest_rate >= 1.0 {
        let largest = two_digits(remedies.largest_rate);
        let apps = HumanCount(whole((plan.rate / largest).ceil().max(2.0)));
        let largest = HumanCount(whole(largest));
        advice.push(format!("With all else unchanged, {largest} events a second are sustainable."));
        advice.push(format!(
            "Spread the load over {apps} App IDs: each has its own rate limit and its own buffers."
        ));
    } else {
        advice.push("With all else unchanged, no rate is sustainable.".to_owned());
    }
    let (way, nearby) = match plan.page_time.is_zero() {
        true => ("round trip", ""),
        false => ("network path", " and pages that arrive at once"),
    };
    advice.push(match remedies.lost_nearby {
        0.0 => {
            format!("A shorter, steadier {way} would be enough: with 5 ms{nearby} nothing is lost.")
        }
        lost => format!(
            "A shorter {way} would not be enough: with a steady 5 ms{nearby}, it still loses {}.",
            percent(lost)
        ),
    });
    advice.push(
        "More regions or a second bridge don't help: Agora's rate limit applies to the App ID as a \
         whole."
            .to_owned(),
    );
    advice
}

fn percent(share: f64) -> String {
    let percent = 100.0 * share;
    if percent < 0.01 { "less than 0.01 %".to_owned() } else { format!("{percent:.2} %") }
}

/// Rounded down to the two digits that the search determined.
fn two_digits(number: f64) -> f64 {
    let unit = 10_f64.powf((number.log10().floor() - 1.0).max(0.0));
    (number / unit).floor() * unit
}

/// Rounds a count that was computed as a fraction.
#[expect(clippy::cast_possible_truncation, reason = "`as` saturates, and a count is not negative")]
#[expect(clippy::cast_sign_loss, reason = "`as` saturates, and a count is not negative")]
fn whole(number: f64) -> u64 {
    number.round() as u64
}
