//! The numbered statements on TCP, one test each: a segment in, a segment out, through the seam that the engine uses.
//!
//! A test is named by what must hold and quotes its statement (`conformance N`, see `docs/PROTOCOLS.md`). What does not depend
//! on the address family is tried over both. Statements that need sockets are tried at the engine's seam (`engine`).

#![allow(unreachable_pub, reason = "a module of a test has nobody outside")]

mod close;
mod dsl;
mod full;
mod input;
mod network;
mod output;
#[path = "../engine_sim/world.rs"]
#[allow(dead_code, reason = "shared with the simulation of the engine")]
mod world;
