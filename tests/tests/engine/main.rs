//! `engine` from the outside: what it prints, what it writes, and how it ends.

mod embed;
mod inputs;
mod models;
mod predict;
mod search;
