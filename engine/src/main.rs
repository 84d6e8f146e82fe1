//! `engine`: will fine-tune, evaluate and run what `vlmerge` writes. So far it says so.

use clap::Parser;

/// Fine-tune, evaluate and run merged vision-language models.
#[derive(Debug, Parser)]
#[command(name = "engine", version, max_term_width = 100)]
#[command(after_help = COMING)]
struct Cli {}

const COMING: &str = "\
No command works yet. Coming, in this order:
  predict, embed, search   run a checkpoint on images and texts
  grams                    gram matrices for vlmerge regmean
  probe, selftest, info    compare with a reference, check a device
  finetune, eval, data     train and evaluate on retrieval, VQA, NLVR2 and ImageNet";

fn main() {
    let Cli {} = Cli::parse();
    println!("engine {}\n\n{COMING}", env!("CARGO_PKG_VERSION"));
}
