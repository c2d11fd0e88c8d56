//! Which timestamps the records of events may have.

use std::time::Duration;

use crate::model::Timestamp;

/// Which event times may stamp a record.
///
/// A record's timestamp decides when Kafka deletes it, and one outside of a topic's limits fails
/// its whole batch: 1,000 records stamped ten days ago in a topic with seven days' retention were
/// gone in four minutes. The brokers judge by their clock, so this machine's has no part in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamping {
    /// An event older than this does not stamp its record.
    pub oldest: Duration,
    /// An event that is ahead of the brokers' clock by more does not stamp its record.
    pub ahead: Duration,
}

/// What is known of the brokers' clock while a page is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BrokerTime {
    /// When the broker appended the page: certain, and past.
    pub appended: Option<Timestamp>,
    /// What its clock is believed to show now.
    pub now: Timestamp,
}

// === impl Stamping ===

impl Stamping {
    /// How far ahead an event may be where the topic sets no limit, or one that is larger.
    pub const AHEAD: Duration = Duration::from_secs(60);

    /// The event's time, where the topic keeps a record that is stamped with it.
    pub fn stamp(&self, event: Timestamp, broker: BrokerTime) -> Option<Timestamp> {
        let oldest = broker.now.before(self.oldest);
        let newest = broker.appended.unwrap_or(broker.now).after(self.ahead);
        (oldest <= event && event <= newest && event.as_millis() >= 0).then_some(event)
    }

    /// The time of records that no event stamps: that of their page, unless it waited for too long
    /// since.
    pub fn rest(&self, broker: BrokerTime) -> Timestamp {
        let oldest = broker.now.before(self.oldest);
        broker.appended.filter(|appended| *appended >= oldest).unwrap_or(broker.now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The page was appended at 1,000,000, and the broker's clock may have gone on.
    #[test]
    fn only_times_that_the_topic_keeps_stamp_a_record() {
        let stamping = Stamping { oldest: Duration::from_secs(100), ahead: Duration::from_secs(5) };
        let page = Timestamp::from_millis(1_000_000);
        for (appended, now, event, stamped) in [
            (Some(page), page, 1_000_000, true),
            (Some(page), page, 900_000, true),
            (Some(page), page, 899_999, false),
            (Some(page), page, 1_005_000, true),
            (Some(page), page, 1_005_001, false),
            // What has become old meanwhile, and what may still be ahead.
            (Some(page), page.after(Duration::from_secs(1)), 900_999, false),
            (Some(page), page.after(Duration::from_secs(1)), 1_005_001, false),
            (None, page, 1_005_000, true),
            (None, page, 899_999, false),
        ] {
            let event = Timestamp::from_millis(event);
            let broker = BrokerTime { appended, now };
            assert_eq!(stamping.stamp(event, broker), stamped.then_some(event), "{event}");
        }
    }

    #[test]
    fn what_no_event_stamps_has_the_time_of_its_page_unless_that_is_old() {
        let stamping = Stamping { oldest: Duration::from_secs(100), ahead: Duration::from_secs(5) };
        let appended = Timestamp::from_millis(1_000_000);
        for (appended, waited, stamp) in [
            (Some(appended), 0, 1_000_000),
            (Some(appended), 100_000, 1_000_000),
            (Some(appended), 100_001, 1_100_001),
            (None, 7, 1_000_007),
        ] {
            let now = Timestamp::from_millis(1_000_000 + waited);
            let stamped = stamping.rest(BrokerTime { appended, now });
            assert_eq!(stamped, Timestamp::from_millis(stamp), "{waited}");
        }
    }
}
