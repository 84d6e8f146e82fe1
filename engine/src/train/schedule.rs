//! The learning rate of every update.

use super::config::{Config, Decay, Warmup};

/// A linear rise from 0, then a fall to the last update.
///
/// Update 0 has learning rate 0 where there is any warm-up, as in the Python code (the schedules of `transformers`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    pub lr: f64,
    /// Updates in all.
    pub steps: u64,
    /// Updates of the rise.
    pub warmup: u64,
    pub decay: Decay,
    /// Of the polynomial.
    pub power: f64,
    /// Where the polynomial ends.
    pub end_lr: f64,
}

impl Schedule {
    pub fn new(config: &Config, steps: u64) -> Schedule {
        let warmup = match config.warmup {
            Warmup::Steps(warmup) => warmup,
            // Rounded down, as the Python code does.
            Warmup::Fraction(fraction) => (steps as f64 * fraction) as u64,
        };
        let Config { lr, decay, decay_power: power, end_lr, .. } = *config;
        Schedule { lr, steps, warmup, decay, power, end_lr }
    }

    /// The learning rate of an update, counted from 0.
    pub fn at(&self, step: u64) -> f64 {
        if step < self.warmup {
            return self.lr * (step as f64 / self.warmup as f64);
        }
        let (done, span) = (step - self.warmup, self.steps.saturating_sub(self.warmup));
        match self.decay {
            _ if done >= span => {
                if self.decay == Decay::Cosine {
                    0.0
                } else {
                    self.end_lr
                }
            }
            Decay::Polynomial => {
                let left = 1.0 - done as f64 / span as f64;
                (self.lr - self.end_lr) * left.powf(self.power) + self.end_lr
            }
            Decay::Cosine => self.lr * (0.5 * (1.0 + (std::f64::consts::PI * done as f64 / span as f64).cos())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equals_the_reference_to_the_last_bit() {
        // expect_train_irtr_ufo.json: warm-up 4, power 1, to 0 at 20.
        let schedule = Schedule { lr: 1e-3, steps: 20, warmup: 4, decay: Decay::Polynomial, power: 1.0, end_lr: 0.0 };
        let expected =
            [0.0, 0.00025, 0.0005, 0.00075, 0.001, 0.0009375, 0.000875, 0.0008125000000000001, 0.00075, 0.0006875];
        let rates: Vec<f64> = (0..10).map(|step| schedule.at(step)).collect();
        assert_eq!(rates, expected);
        assert_eq!((schedule.at(20), schedule.at(1000)), (0.0, 0.0));
    }

    #[test]
    fn cosine_is_half_way_down_in_the_middle() {
        let schedule = Schedule { lr: 2.0, steps: 12, warmup: 2, decay: Decay::Cosine, power: 1.0, end_lr: 0.0 };
        let near = |step, rate: f64| assert!((schedule.at(step) - rate).abs() < 1e-12, "{step}: {}", schedule.at(step));
        near(0, 0.0);
        near(1, 1.0);
        near(2, 2.0);
        near(7, 1.0);
        near(12, 0.0);
        near(13, 0.0);
    }

    #[test]
    fn warm_up_is_a_number_or_a_fraction() {
        let mut config = Config { warmup: Warmup::Fraction(0.1), ..Config::default() };
        assert_eq!(Schedule::new(&config, 57).warmup, 5);
        config.warmup = Warmup::Steps(30);
        assert_eq!(Schedule::new(&config, 57).warmup, 30);
        config.warmup = Warmup::Steps(0);
        assert_eq!(Schedule::new(&config, 57).at(0), config.lr);
    }

    #[test]
    fn a_rise_longer_than_the_run_never_falls() {
        let schedule = Schedule { lr: 1.0, steps: 5, warmup: 10, decay: Decay::Polynomial, power: 1.0, end_lr: 0.25 };
        assert_eq!(schedule.at(4), 0.4);
        assert_eq!(schedule.at(10), 0.25);
    }
}
