//! A finding as a vector: feature hashing (Weinberger et al. 2009) of what happened, without the names of things.
//!
//! Four views of a finding, each of length one and then weighed: its cause and the kind of its seat; the kinds of
//! signals; the order of signals along the chain and whether it moves to another thing; the words of the story. Names of
//! entities and everything with a digit in it are left out of the words, so that the same trouble elsewhere is the same.

use std::collections::{BTreeMap, BTreeSet};

use tapio_schemas::Finding;
use xxhash_rust::xxh3::xxh3_64;

/// Numbers of an embedding. A power of two.
const DIMENSIONS: usize = 128;
/// First byte of a stored embedding; it grows with `INDEX_VERSION` when anything here changes.
const VERSION: u8 = 1;
/// Shares of the four views: cause, signals, chain, words. They add up to one.
const SHARES: [f32; 4] = [0.35, 0.3, 0.15, 0.2];
/// Shortest word that says something.
const WORD_CHARS_MIN: usize = 3;

/// A vector of length one, or zero for a finding that says nothing.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Embedding([f32; DIMENSIONS]);

impl Embedding {
    pub(super) fn of(finding: &Finding) -> Self {
        let views = [cause(finding), signals(finding), chain(finding), words(finding)];
        let mut sum = [0.0; DIMENSIONS];
        for (share, features) in SHARES.into_iter().zip(views) {
            let view = hashed(&features);
            let length = length(&view);
            if length > 0.0 {
                sum.iter_mut().zip(view).for_each(|(sum, value)| *sum += share.sqrt() * value / length);
            }
        }
        let length = length(&sum);
        if length > 0.0 {
            sum.iter_mut().for_each(|value| *value /= length);
        }
        Self(sum)
    }

    /// Cosine of the angle between two; at most one, and zero for what has nothing in common.
    pub(super) fn similarity(&self, other: &Self) -> f64 {
        let dot: f32 = self.0.iter().zip(other.0).map(|(a, b)| a * b).sum();
        f64::from(dot.clamp(0.0, 1.0))
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        std::iter::once(VERSION).chain(self.0.iter().flat_map(|value| value.to_le_bytes())).collect()
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let numbers = bytes.strip_prefix(&[VERSION])?;
        let mut values = [0.0; DIMENSIONS];
        let (chunks, rest) = numbers.as_chunks::<4>();
        if chunks.len() != DIMENSIONS || !rest.is_empty() {
            return None;
        }
        values.iter_mut().zip(chunks).for_each(|(value, chunk)| *value = f32::from_le_bytes(*chunk));
        Some(Self(values))
    }
}

type Features = BTreeMap<String, f32>;

fn hashed(features: &Features) -> [f32; DIMENSIONS] {
    let mut values = [0.0; DIMENSIONS];
    for (feature, weight) in features {
        let hash = xxh3_64(feature.as_bytes());
        // The sign keeps collisions from adding up.
        let sign = if hash >> 63 == 0 { 1.0 } else { -1.0 };
        values[hash as usize % DIMENSIONS] += sign * weight;
    }
    values
}

fn length(values: &[f32]) -> f32 {
    values.iter().map(|value| value * value).sum::<f32>().sqrt()
}

fn cause(finding: &Finding) -> Features {
    let root = finding.root_cause.as_ref().map(|root| (root.cause.as_str(), root.entity.kind.as_str()));
    let guess = finding.hypotheses.first().map(|h| (h.cause.as_str(), h.entity.kind.as_str()));
    let Some((cause, kind)) = root.or(guess) else { return Features::new() };
    let category = cause.split('.').next().unwrap_or_default();
    Features::from([
        (format!("cause {cause}"), 1.0),
        (format!("category {category}"), 0.5),
        (format!("seat {kind}"), 0.5),
    ])
}

fn signals(finding: &Finding) -> Features {
    let mut counts = Features::new();
    for link in &finding.chain {
        *counts.entry(format!("signal {}", link.signal)).or_default() += 1.0;
    }
    counts.values_mut().for_each(|count| *count = 1.0 + count.ln());
    counts
}

fn chain(finding: &Finding) -> Features {
    let mut steps = Features::new();
    for pair in finding.chain.windows(2) {
        let [from, to] = pair else { continue };
        let moves = if from.entity == to.entity { "stays" } else { "moves" };
        steps.insert(format!("step {} {moves} {}", from.signal, to.signal), 1.0);
    }
    steps
}

fn words(finding: &Finding) -> Features {
    let chain = finding.chain.iter().map(|link| &link.entity);
    let roots = finding.root_cause.iter().map(|root| &root.entity);
    let mut names = BTreeSet::new();
    for entity in chain.chain(roots) {
        for name in [&entity.name, &entity.namespace, &entity.node] {
            names.extend(split(name));
        }
    }
    names.extend(finding.impact.callers.iter().flat_map(|caller| split(caller)));
    let mut counts = Features::new();
    for word in split(&finding.title).chain(split(&finding.story)) {
        let speaks = word.chars().count() >= WORD_CHARS_MIN && !word.contains(|c: char| c.is_ascii_digit());
        if speaks && !names.contains(&word) {
            *counts.entry(format!("word {word}")).or_default() += 1.0;
        }
    }
    counts.values_mut().for_each(|count| *count = 1.0 + count.ln());
    counts
}

fn split(text: &str) -> impl Iterator<Item = String> {
    text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).map(str::to_lowercase)
}
