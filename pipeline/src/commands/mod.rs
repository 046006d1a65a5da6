//! Commands beside the stages: they write no run, only print. One file each.

pub mod score;
