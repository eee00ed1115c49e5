//! What a shard counts. Plain numbers; the worker adds them to the metrics after each round.

/// Counts since they were last taken.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Counters {
    /// Events read from checked batches.
    pub events: u64,
    /// Events refused or shed, by reason.
    pub dropped: Dropped,
    /// Events that arrived behind the watermark (and were used all the same).
    pub late: u64,
    /// Batches that had been read before.
    pub duplicate_batches: u64,
    /// Signal revisions said.
    pub signals: u64,
    /// Semantic groups opened.
    pub groups: u64,
    /// Things forgotten because their map was full, by map.
    pub evicted: Evicted,
    /// Events missing from producers' sequences.
    pub gap_events: u64,
    /// First words of news.
    pub first_words: u64,
    /// News of which no first word was said, by reason.
    pub unsaid: Unsaid,
}

/// Why of something that may be news no first word was said. Nothing is lost: the signal says it.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Unsaid {
    /// It had happened too long ago to be told as new.
    pub old: u64,
    /// Too much was looked at in this second: not looked at.
    pub looks: u64,
    /// Too much was said in this second.
    pub words: u64,
}

/// Why events were not used.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Dropped {
    /// No time, no id, or no cluster.
    pub integrity: u64,
    /// Too far behind the watermark.
    pub too_old: u64,
    /// Too far ahead of the clock.
    pub in_future: u64,
    /// Above the producer's rate.
    pub rate_limited: u64,
    /// Same time and id as one that waits, or as a span or a line that was judged lately.
    pub duplicate: u64,
    /// In a batch that took too long while too much was put aside already.
    pub batch_time: u64,
    /// Shed, because this process has nearly all the memory it may.
    pub memory_pressure: u64,
    /// In a batch at which the work on its shard panicked again and again, or waiting in a shard that panicked so.
    pub panicked: u64,
    /// Kills of before its start that a kubelet told as if they were new.
    pub retold: u64,
}

/// What was forgotten because its map was full.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Evicted {
    /// Events released before their time.
    pub reorder: u64,
    /// Series.
    pub series: u64,
    /// Open deviations.
    pub episodes: u64,
    /// Semantic groups.
    pub groups: u64,
    /// Members of semantic groups beyond their limit.
    pub group_members: u64,
    /// Client spans that wait for their callee.
    pub calls: u64,
    /// Call edges of a tally window.
    pub edges: u64,
    /// Producers.
    pub producers: u64,
    /// Remembered victims and exits.
    pub exits: u64,
    /// Spans and their log lines that wait for their parent, or for room.
    pub open_spans: u64,
    /// Log lines that wait for their span.
    pub open_lines: u64,
    /// Children and lines whose span did not come in time, or not at all.
    pub unparented: u64,
    /// Children of one span beyond their limit.
    pub children: u64,
    /// Steps of a request beyond their limit.
    pub steps: u64,
    /// Requests whose way found no room.
    pub shapes: u64,
    /// Operations of a service, or of a window, beyond their limit.
    pub operations: u64,
    /// Requests of windows in which events were lost.
    pub doubted: u64,
    /// Names and templates.
    pub texts: u64,
    /// Measures of services.
    pub meters: u64,
    /// Sights of entities and connections; those that last are seen again.
    pub sights: u64,
    /// Spans and lines that would not be known, if they were delivered again.
    pub repeats: u64,
    /// Rates of drops whose season is not learnt because those of too many are.
    pub unseasoned: u64,
}

impl Dropped {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.by_reason().iter().map(|(_, count)| count).sum()
    }

    /// What came since `before`.
    pub fn since(&self, before: &Self) -> Self {
        Self {
            integrity: self.integrity - before.integrity,
            too_old: self.too_old - before.too_old,
            in_future: self.in_future - before.in_future,
            rate_limited: self.rate_limited - before.rate_limited,
            duplicate: self.duplicate - before.duplicate,
            batch_time: self.batch_time - before.batch_time,
            memory_pressure: self.memory_pressure - before.memory_pressure,
            panicked: self.panicked - before.panicked,
            retold: self.retold - before.retold,
        }
    }

    /// Adds others.
    pub fn add(&mut self, more: &Self) {
        self.integrity += more.integrity;
        self.too_old += more.too_old;
        self.in_future += more.in_future;
        self.rate_limited += more.rate_limited;
        self.duplicate += more.duplicate;
        self.batch_time += more.batch_time;
        self.memory_pressure += more.memory_pressure;
        self.panicked += more.panicked;
        self.retold += more.retold;
    }

    /// Counts with the reason they are shown under.
    pub fn by_reason(&self) -> [(&'static str, u64); 9] {
        [
            ("integrity", self.integrity),
            ("too_old", self.too_old),
            ("in_future", self.in_future),
            ("rate_limited", self.rate_limited),
            ("duplicate", self.duplicate),
            ("batch_time", self.batch_time),
            ("memory_pressure", self.memory_pressure),
            ("panicked", self.panicked),
            ("retold", self.retold),
        ]
    }
}

impl Unsaid {
    /// Counts with the reason they are shown under.
    pub fn by_reason(&self) -> [(&'static str, u64); 3] {
        [("old", self.old), ("looks", self.looks), ("words", self.words)]
    }
}

impl Evicted {
    /// Counts with the map they are shown under.
    pub fn by_map(&self) -> [(&'static str, u64); 22] {
        [
            ("reorder", self.reorder),
            ("series", self.series),
            ("episodes", self.episodes),
            ("groups", self.groups),
            ("group_members", self.group_members),
            ("calls", self.calls),
            ("edges", self.edges),
            ("producers", self.producers),
            ("exits", self.exits),
            ("open_spans", self.open_spans),
            ("open_lines", self.open_lines),
            ("unparented", self.unparented),
            ("children", self.children),
            ("steps", self.steps),
            ("shapes", self.shapes),
            ("operations", self.operations),
            ("doubted", self.doubted),
            ("texts", self.texts),
            ("meters", self.meters),
            ("sights", self.sights),
            ("repeats", self.repeats),
            ("drop_unseasoned", self.unseasoned),
        ]
    }
}
