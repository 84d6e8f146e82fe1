//! Hostile files, one family a module: each is refused in one line, or opens with a result that
//! is said here. Every case runs under a time limit and a memory limit, see [`harness`].

mod files;
mod harness;

mod code;
mod foreign;
mod growth;
mod legacy;
mod names;
mod nesting;
mod opcodes;
mod safetensors;
mod sharded;
mod truncated;
mod views;
mod zips;

#[global_allocator]
static ALLOCATOR: harness::CountingAllocator = harness::CountingAllocator;
