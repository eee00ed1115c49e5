//! The two bounded windows of a series: the last samples as they came, and one sample per cell of time.

use std::collections::VecDeque;

use tapio_schemas::{EventId, UnixNanos};

/// One sample.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    /// Event time.
    pub at: UnixNanos,
    /// Value.
    pub value: f64,
    /// The event that carried it.
    pub event: EventId,
}

/// A bounded series. Pure function of the samples it was given: no state but the samples themselves.
#[derive(Debug, Default)]
pub struct Window {
    fine: VecDeque<Point>,
    coarse: VecDeque<Point>,
}

/// Sizes of a window.
#[derive(Debug, Clone, Copy)]
pub struct WindowSize {
    /// Samples kept as they came.
    pub fine_points: usize,
    /// Length of a coarse cell, ns.
    pub cell_ns: u64,
    /// Coarse cells.
    pub coarse_points: usize,
}

impl Window {
    /// Adds a sample. False (and nothing changes) when it is not newer than the last.
    pub fn push(&mut self, point: Point, size: WindowSize) -> bool {
        if self.last().is_some_and(|last| point.at <= last.at) {
            return false;
        }
        let cell = |p: &Point| p.at.0 / size.cell_ns.max(1);
        match self.coarse.back_mut() {
            Some(last) if cell(last) == cell(&point) => *last = point,
            _ => self.coarse.push_back(point),
        }
        while self.coarse.len() > size.coarse_points {
            self.coarse.pop_front();
        }
        self.fine.push_back(point);
        while self.fine.len() > size.fine_points {
            self.fine.pop_front();
        }
        true
    }

    /// Newest sample.
    pub fn last(&self) -> Option<Point> {
        self.fine.back().copied()
    }

    /// Samples as they came, oldest first.
    pub fn fine(&mut self) -> &[Point] {
        self.fine.make_contiguous()
    }

    /// One sample per cell, oldest first.
    pub fn coarse(&mut self) -> &[Point] {
        self.coarse.make_contiguous()
    }

    /// Time of the oldest sample as it came.
    pub fn fine_start(&self) -> Option<UnixNanos> {
        self.fine.front().map(|p| p.at)
    }
}
