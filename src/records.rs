//! The formats of records that other programs read, and later versions of this one.
//!
//! [`public`] has events, gaps and dead letters, which consumers read. [`pages`] has the records of the
//! pages topic, which the forwarder writes and the publisher reads. The formats are contracts: the
//! tests of this room hold them.

pub mod pages;
pub mod public;
