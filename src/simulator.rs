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

pub use self::counted::Counted;
pub use self::counted::Counts;
pub use self::counted::Taken;
pub use self::http::LEDGER_PATH;
pub use self::http::Server;
pub use self::http::serve;
pub use self::ledger::AnswerRecord;
pub use self::ledger::AppSummary;
pub use self::ledger::Fate;
pub use self::ledger::Ledger;
pub use self::ledger::Recorded;
pub use self::ledger::Requests;
pub use self::ledger::Summary;
pub use self::ledger::Totals;
pub use self::script::AppScript;
pub use self::script::Burst;
pub use self::script::DEFAULT_EPOCH;
pub use self::script::Detour;
pub use self::script::Dialect;
pub use self::script::Empty;
pub use self::script::Fault;
pub use self::script::FaultKind;
pub use self::script::FramingChoice;
pub use self::script::Load;
pub use self::script::Network;
pub use self::script::NotAFault;
pub use self::script::NotASpread;
pub use self::script::RampPoint;
pub use self::script::RandomBursts;
pub use self::script::RateLimit;
pub use self::script::RegionScript;
pub use self::script::Script;
pub use self::script::ScriptError;
pub use self::script::Spread;
pub use self::script::TokenScript;
pub use self::teach::TEACH;
pub use self::wire::Answer;
pub use self::wire::Connection;
pub use self::wire::Ending;
pub use self::wire::Framing;
pub use self::wire::Request;
pub use self::world::World;
