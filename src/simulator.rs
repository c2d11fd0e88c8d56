//! An Agora that behaves as documented, for developers and for this project's own tests.
//!
//! The core is [`World`]: pure, deterministic by the seed of its [`Script`], with time passed in.
//! Tests in simulated time call it directly. Its [`Ledger`] knows what became of each event, so
//! that a consumer can be judged: it must publish each event that the ledger counts as delivered
//! exactly once, and no other. [`serve`] exposes the world over HTTP, in real time. Where only
//! numbers matter, [`Counted`] plays the same script without names, bodies and ledger.
//!
//! It promises to be at least as strict as Agora's documentation; where the documentation is
//! ambiguous, the script has a switch. It does not promise to be Agora: nothing here was measured
//! against the real service.

mod body;
mod buffer;
mod clock;
mod counted;
mod door;
mod event;
mod faults;
mod http;
mod ledger;
mod load;
mod names;
mod script;
mod teach;
mod wire;
mod world;

pub use self::counted::{Counted, Counts, Taken};
pub use self::http::{LEDGER_PATH, Server, serve};
pub use self::ledger::{
    AnswerRecord, AppSummary, Fate, Ledger, Recorded, Requests, Summary, Totals,
};
pub use self::script::{
    AppScript, Burst, DEFAULT_EPOCH, Detour, Dialect, Empty, Fault, FaultKind, FramingChoice, Load,
    Network, NotAFault, NotASpread, RampPoint, RandomBursts, RateLimit, RegionScript, Script,
    ScriptError, Spread, TokenScript,
};
pub use self::teach::TEACH;
pub use self::wire::{Answer, Connection, Ending, Framing, Request};
pub use self::world::World;
