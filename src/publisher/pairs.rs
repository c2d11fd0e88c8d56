//! Notices a second consumer of an App ID, by logins without logouts.
//!
//! A page that another consumer takes never reaches us. But a user logs in and out alternately: if a
//! login follows a login, the logout between them is missing. Such a *break* is rare normally, and
//! affects a large share of the pairs while pages go elsewhere.
//!
//! Other causes of breaks, and how they are handled: a gap of our own (the app's users are forgotten);
//! several devices of one user (a share of a few percent is tolerated; an app in which many users have
//! two devices looks like one with a second consumer); order (an event older than its user's last one
//! is ignored, and an app with several regions, whose pages come in any order, is not examined). A
//! consumer that takes less than one page in twenty is not noticed, nor is one in an app whose users
//! come only once.
//!
//! Only user events are examined: there are many more ways to leave a channel, and one kind of evidence
//! is enough.
//!
//! Pure and bounded: [`SLOTS`] users of an app are remembered, by a hash; a newer one that falls on
//! the same place puts the older out.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

use crate::model::{AppId, Timestamp};

/// Users that are remembered of an app.
const SLOTS: u64 = 4_096;

/// Over how many transitions the share of breaks fades.
const MEMORY: f64 = 500.0;

/// So many transitions have to be seen before anything is said.
const ENOUGH: u32 = 100;

/// The share of breaks that is suspected, and the one that is well again.
const SUSPECT: f64 = 0.05;
const CALM: f64 = 0.01;

/// All apps of a partition.
#[derive(Debug)]
pub(super) struct Pairs<S = RandomState> {
    hasher: S,
    /// In how many regions each app is drained.
    regions: HashMap<AppId, usize>,
    apps: HashMap<AppId, AppPairs>,
}

/// What an event told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Told {
    /// It broke a pair.
    pub(super) is_break: bool,
    /// A suspicion begins or ends with it.
    pub(super) turn: Option<Turn>,
}

/// What an episode does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// From here on a second consumer is suspected.
    Begins,
    /// The pairs are whole again.
    Ends,
}

#[derive(Debug, Default)]
struct AppPairs {
    /// By the place that their hash falls on.
    users: HashMap<u64, Last>,
    /// Transitions seen.
    seen: u32,
    breaks: f64,
    suspected: bool,
}

/// The last event of a user.
#[derive(Clone, Copy, Debug)]
struct Last {
    user: u64,
    time: Timestamp,
    login: bool,
}

// === impl Pairs ===

impl<S: BuildHasher + Default> Pairs<S> {
    /// Nothing is known. An app of several regions, or of none of ours, is never looked at.
    pub(super) fn new(regions: HashMap<AppId, usize>) -> Self {
        Self { hasher: S::default(), regions, apps: HashMap::new() }
    }

    /// Takes in an event that is no repeat. Types other than `Login` and `Logout` tell nothing.
    pub(super) fn observe(&mut self, app: &AppId, user: &str, kind: &str, time: Timestamp) -> Told {
        let login = kind.eq_ignore_ascii_case("login");
        let tells = login || kind.eq_ignore_ascii_case("logout");
        if !tells || self.regions.get(app) != Some(&1) {
            return Told::default();
        }
        let user = self.hasher.hash_one(user);
        if !self.apps.contains_key(app) {
            self.apps.insert(app.clone(), AppPairs::default());
        }
        let pairs = self.apps.get_mut(app).expect("it was put there if it was missing");
        pairs.observe(Last { user, time, login })
    }

    /// Events of an app are missing for a reason that is known: what follows them breaks no pair.
    pub(super) fn forget_users(&mut self, app: &AppId) {
        if let Some(pairs) = self.apps.get_mut(app) {
            pairs.users.clear();
        }
    }

    /// The same of all apps: events may come once more.
    pub(super) fn forget_all_users(&mut self) {
        self.apps.values_mut().for_each(|pairs| pairs.users.clear());
    }
}

// === impl AppPairs ===

impl AppPairs {
    fn observe(&mut self, event: Last) -> Told {
        let place = event.user % SLOTS;
        let former = self.users.get(&place).filter(|former| former.user == event.user).copied();
        if former.is_some_and(|former| event.time < former.time) {
            return Told::default();
        }
        self.users.insert(place, event);
        let Some(former) = former else { return Told::default() };
        let is_break = former.login == event.login;
        self.breaks += (f64::from(u8::from(is_break)) - self.breaks) / MEMORY;
        self.seen = self.seen.saturating_add(1);
        Told { is_break, turn: self.turn() }
    }

    /// The share of breaks among what was seen: at first it is remembered of fewer.
    fn share(&self) -> f64 {
        let weight = 1.0 - (1.0 - 1.0 / MEMORY).powf(f64::from(self.seen));
        self.breaks / weight
    }

    fn turn(&mut self) -> Option<Turn> {
        if self.seen < ENOUGH {
            return None;
        }
        let share = self.share();
        if !self.suspected && share >= SUSPECT {
            self.suspected = true;
            return Some(Turn::Begins);
        }
        if self.suspected && share < CALM {
            self.suspected = false;
            return Some(Turn::Ends);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::hash::{BuildHasherDefault, DefaultHasher};

    use rand::rngs::StdRng;
    use rand::{RngExt as _, SeedableRng as _};

    use super::*;

    type Seeded = Pairs<BuildHasherDefault<DefaultHasher>>;

    fn seeded() -> Seeded {
        Pairs::new(["a", "b"].map(|app| (AppId::new(app), 1)).into())
    }

    /// Users who come and go in turn; of their pages of 20 events every one for which `stolen` says
    /// so is not seen. The turns, each with the number of the page, and the breaks.
    fn story(users: usize, pages: u64, stolen: impl Fn(u64) -> bool) -> (Vec<(u64, Turn)>, u32) {
        let mut random = StdRng::seed_from_u64(5);
        let (mut pairs, app) = (seeded(), AppId::new("a"));
        let mut online = vec![false; users];
        let (mut turns, mut breaks) = (Vec::new(), 0);
        for page in 0..pages {
            for _ in 0..20 {
                let user = random.random_range(0..users);
                online[user] = !online[user];
                if stolen(page) {
                    continue;
                }
                let kind = if online[user] { "Login" } else { "Logout" };
                let time = Timestamp::from_millis(i64::try_from(page).unwrap());
                let told = pairs.observe(&app, &user.to_string(), kind, time);
                breaks += u32::from(told.is_break);
                turns.extend(told.turn.map(|turn| (page, turn)));
            }
        }
        (turns, breaks)
    }

    #[test]
    fn users_who_come_and_go_in_turn_are_no_suspicion() {
        // More users than places: those who were put out tell nothing wrong.
        for users in [1, 300, 20_000] {
            assert_eq!(story(users, 3_000, |_| false), (Vec::new(), 0), "{users} users");
        }
    }

    #[test]
    fn a_thief_of_pages_is_suspected_once_and_the_suspicion_ends_with_him() {
        for (name, every) in [("half", 2), ("a fifth", 5), ("a tenth", 10)] {
            let stolen = |page| (1_000..2_000).contains(&page) && page % every == 0;
            let (turns, breaks) = story(300, 4_000, stolen);
            let [(begins, Turn::Begins), (ends, Turn::Ends)] = turns[..] else {
                panic!("{name}: {turns:?}")
            };
            assert!((1_000..1_400).contains(&begins), "{name}: page {begins}");
            assert!((2_000..2_400).contains(&ends), "{name}: page {ends}");
            assert!(breaks > 100, "{name}: {breaks}");
        }
    }

    #[test]
    fn a_single_loss_is_borne() {
        let (turns, breaks) = story(300, 2_000, |page| page == 1_000);
        assert_eq!(turns, []);
        assert!(breaks > 0);
    }

    #[test]
    fn nothing_is_said_before_enough_was_seen() {
        let (mut pairs, app) = (seeded(), AppId::new("a"));
        let mut turn = || pairs.observe(&app, "u", "LOGIN", Timestamp::default()).turn;
        assert!((0..ENOUGH).all(|_| turn().is_none()));
        assert_eq!(turn(), Some(Turn::Begins));
        assert_eq!(turn(), None, "once an episode");
    }

    #[test]
    fn a_gap_of_our_own_and_an_app_of_two_regions_break_nothing() {
        let (mut pairs, app) = (seeded(), AppId::new("a"));
        let two = AppId::new("two");
        pairs.regions.insert(two.clone(), 2);
        for app in [&app, &two] {
            pairs.observe(app, "u", "Login", Timestamp::default());
        }
        pairs.forget_users(&app);
        for app in [&app, &two] {
            let told = pairs.observe(app, "u", "Login", Timestamp::default());
            assert_eq!(told, Told::default());
        }
    }

    #[test]
    fn what_tells_nothing_changes_nothing() {
        let (mut pairs, app) = (seeded(), AppId::new("a"));
        let mut breaks = |kind: &str, time: i64| {
            pairs.observe(&app, "u", kind, Timestamp::from_millis(time)).is_break
        };
        assert!(!breaks("Login", 10));
        assert!(!breaks("Kicked", 11), "a type that we don't know");
        assert!(!breaks("Login", 9), "older than the last");
        assert!(!breaks("logout", 12));
        assert!(breaks("Logout", 12));
        let other = AppId::new("b");
        assert_eq!(pairs.observe(&other, "u", "Logout", Timestamp::default()), Told::default());
    }
}
