//! `engine info`

use anyhow::Result;
use engine::device::{self, Bf16Units, Choice};
use serde_json::json;

use crate::Report;
use crate::cli::JsonArg;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  engine info
  engine info --json")]
pub struct Args {
    #[command(flatten)]
    pub json: JsonArg,
}

pub fn run(args: &Args) -> Result<Report> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let memory = memory();
    let cards = device::cards();
    let driver = device::driver_version();
    let auto = Choice::Auto.resolve().map_err(anyhow::Error::msg)?;
    let (simd, bf16) = (simd(), Bf16Units::of_this_cpu());
    if args.json.json {
        let cuda = match (&cards, &driver) {
            (Ok(cards), Ok(driver)) => {
                json!({ "driver_cuda": driver, "cards": cards, "passed_over": device::passed_over() })
            }
            (Err(reason), _) | (_, Err(reason)) => json!({ "unavailable": reason }),
        };
        let report = json!({
            "engine": env!("CARGO_PKG_VERSION"),
            "burn": BURN,
            "auto": auto.to_string(),
            "cpu": { "threads": threads, "memory_bytes": memory, "simd": simd, "bf16": bf16.name() },
            "cuda": cuda,
            "precisions": ["f32", "bf16"],
        });
        return Ok(Report::done(format!("{report:#}\n")));
    }
    let mut text = format!("engine {} on burn {BURN}\n", env!("CARGO_PKG_VERSION"));
    let memory = memory.map(|bytes| format!(", {} of memory", gib(bytes))).unwrap_or_default();
    let units = match bf16 {
        Bf16Units::Amx => "AMX for bf16",
        Bf16Units::Avx512 => "AVX512-BF16 but no AMX",
        Bf16Units::Neither => "neither AMX nor AVX512-BF16",
    };
    text += &format!("cpu        {threads} threads, {simd}, {units}{memory}\n");
    if bf16.warning().is_some() {
        text += "           --precision bf16 is slower than f32 here\n";
    }
    match (cards, driver) {
        (Ok(cards), Ok(driver)) => {
            for (index, card) in cards.iter().enumerate() {
                let (name, capability) = (&card.name, &card.compute_capability);
                let memory = gib(card.memory_bytes);
                text += &format!("cuda:{index:<5} {name}, {memory}, compute capability {capability}, CUDA {driver}\n");
            }
        }
        (Err(reason), _) | (_, Err(reason)) => text += &format!("cuda       not here: {reason}\n"),
    }
    if let Some(reason) = device::passed_over() {
        text += &format!("           {reason}\n");
    }
    text += &format!("--device auto is {auto}; precisions f32 and bf16 (matrix products; the rest is f32)\n");
    Ok(Report::done(text))
}

const BURN: &str = "0.21.0";

fn gib(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / 2f64.powi(30))
}

/// The machine's memory in bytes, where the system tells.
fn memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// The widest vectors that the CPU has.
fn simd() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        if std::arch::is_x86_feature_detected!("avx512f") {
            return "AVX-512";
        }
        if std::arch::is_x86_feature_detected!("avx2") {
            return "AVX2";
        }
    }
    std::env::consts::ARCH
}
