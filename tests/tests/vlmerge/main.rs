//! `vlmerge` from the outside: what it prints, what it writes, and how it ends.

mod containers;
mod convert;
mod demo;
mod diff;
mod help;
mod inspect;
mod layouts;
mod merge;
mod models;
mod outputs;
mod refusals;
#[cfg(unix)]
mod signals;
