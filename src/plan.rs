//! Predicts what a polling program would do to one App ID, in simulated time, before it is
//! installed.
//!
//! A [`Trial`] lets a [`Program`] (the bridge's [`Schedule`](crate::schedule::Schedule), or
//! anything else that decides when to poll) poll a simulated Agora over a simulated network. A
//! [`Tally`] counts the losses, the requests and the ages of the events. Pure: the same trial of
//! the same program gives the same result. The bridge's processing of a page is not simulated,
//! except as a fixed time.

mod program;
mod tally;
mod trial;

pub use self::program::{Program, bridge};
pub use self::tally::{Ages, Tally};
pub use self::trial::Trial;
