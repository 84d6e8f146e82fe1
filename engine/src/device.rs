//! Where and how precisely a model runs.

use std::fmt;
use std::str::FromStr;

/// `--device`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// CUDA where a driver and a card are there, else the CPU.
    #[default]
    Auto,
    Cpu,
    /// The card with this index.
    Cuda(usize),
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Choice, String> {
        let index = |text: &str| text.parse().map_err(|_| format!("'{text}' is no card's index, as in cuda:0"));
        match text {
            "auto" => Ok(Choice::Auto),
            "cpu" => Ok(Choice::Cpu),
            "cuda" => Ok(Choice::Cuda(0)),
            _ => match text.strip_prefix("cuda:") {
                Some(card) => index(card).map(Choice::Cuda),
                None => Err("it is auto, cpu, cuda or cuda:N".into()),
            },
        }
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Choice::Auto => f.write_str("auto"),
            Choice::Cpu => f.write_str("cpu"),
            Choice::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

/// `--precision`: of the matrix products; weights, softmax, norms and losses are f32 in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Precision {
    #[default]
    F32,
    Bf16,
}
