//! What a way of polling would do to one App ID: played in simulated time, before anybody installs
//! it.
//!
//! A [`Trial`] lets a [`Program`] (the bridge's [`Schedule`](crate::schedule::Schedule), or anything
//! else that decides when to ask) poll a counted Agora over a simulated network, and a [`Tally`]
//! tells what was lost, what it cost and how old the events became. Pure: the same trial of the same
//! program ends the same. What the bridge does with a page is not played, but for a fixed time.

mod program;
mod tally;
mod trial;

pub use self::program::Program;
pub use self::program::bridge;
pub use self::tally::Ages;
pub use self::tally::Tally;
pub use self::trial::Trial;
