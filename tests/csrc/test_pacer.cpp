// The pacer under a clock that only the test moves.
#include <cmath>
#include <limits>
#include <stdexcept>
#include <vector>

#include "check.h"
#include "pacer.h"

namespace {

using livereel::Pace;
using livereel::Pacer;
using livereel::Timing;

constexpr double kRate = 16.0;
constexpr std::int64_t kChunk = 12;  // 0.75 s
constexpr std::int32_t kPasses = 4;

// A stream whose passes cost `pass` seconds, whose optional work costs `optional` and the rest of a
// chunk `fixed`. Its consumer asks for the next chunk `idle` seconds after it got one.
struct Stream {
  Pacer pacer{kRate, kChunk, true};
  double now = 100.0;
  double pass = 0.0, optional = 0.0, fixed = 0.0, idle = 0.0;
  Pace pace{};

  Timing chunk(std::int64_t frames = kChunk) {
    now += idle;
    pace = pacer.begin(now, kPasses);
    now += fixed + pass * pace.passes + (pace.optional_work ? optional : 0.0);
    return pacer.end(now, frames);
  }
};

bool near(double a, double b) { return std::abs(a - b) < 1e-9; }

bool is(const Pace& pace, bool optional, std::int32_t passes, double rate) {
  return pace.optional_work == optional && pace.passes == passes && near(pace.rate, rate);
}

void deadlines_and_jitter() {
  Stream stream;
  stream.fixed = 0.5;
  CHECK(near(stream.chunk(1).lead, 0.0));  // a stream's first chunk is due when it comes
  // Due when the first has been played, and not sooner than it plays itself.
  CHECK(near(stream.chunk().lead, 0.25));
  const Timing third = stream.chunk();
  CHECK(near(third.lead, 0.5) && near(third.jitter, 0.0));  // a consumer that never waits gains
  stream.idle = 0.25;
  CHECK(near(stream.chunk().lead, 0.5));
  stream.idle = 60.0;  // one that waits long has no lead, and is not late
  CHECK(near(stream.chunk().lead, 0.25));
  stream.idle = 0.0;
  stream.fixed = 1.5;
  const Timing late = stream.chunk();
  CHECK(near(late.lead, -0.5) && near(late.jitter, 1.0 / 16));
  // Playing waited for the late one, and goes on from there.
  stream.fixed = 0.5;
  const Timing after = stream.chunk();
  CHECK(near(after.lead, 0.25) && near(after.jitter, 1.0 / 16 + (1.0 - 1.0 / 16) / 16));
}

void a_late_chunk_is_still_played_as_long() {
  Stream stream;
  stream.chunk(1);
  stream.fixed = 1.5;
  stream.chunk();  // 0.75 s late
  stream.fixed = 0.5;
  CHECK(near(stream.chunk(1).lead, 0.25));  // a short one is due when it has been played
}

void goes_down_rung_by_rung_and_up_again() {
  Stream stream;
  stream.fixed = 2.0;
  stream.chunk(1);
  std::vector<Pace> paces;
  for (int i = 0; i < 9; ++i) {
    stream.chunk();
    paces.push_back(stream.pace);
  }
  CHECK(is(paces[0], true, 4, 16));
  CHECK(is(paces[1], false, 4, 16));
  CHECK(is(paces[2], false, 3, 16));
  CHECK(is(paces[3], false, 2, 16));
  CHECK(is(paces[4], false, 1, 16));
  CHECK(is(paces[5], false, 1, 12));
  CHECK(is(paces[6], false, 1, 9));
  CHECK(is(paces[7], false, 1, 8));
  CHECK(is(paces[8], false, 1, 8));  // the last rung

  stream.fixed = 0.1;
  const std::vector<Pace> up{paces[6], paces[5], paces[4], paces[3], paces[2], paces[1], paces[0]};
  for (const Pace& upper : up) {
    for (int i = 0; i < 4; ++i) stream.chunk();
    CHECK(!is(stream.pace, upper.optional_work, upper.passes, upper.rate));
    const Pace next = stream.pacer.begin(stream.now, kPasses);
    CHECK(is(next, upper.optional_work, upper.passes, upper.rate));
  }
}

void a_lead_is_spent_before_quality() {
  Stream stream;
  stream.fixed = 0.25;
  stream.chunk(1);
  for (int i = 0; i < 4; ++i) stream.chunk();  // 2 s ahead
  stream.fixed = 1.25;
  int chunks = 0;
  while (stream.pacer.begin(stream.now, kPasses).optional_work) {
    CHECK(stream.chunk().lead >= 0);
    ++chunks;
  }
  CHECK(chunks == 4);  // half a second each, and no chunk came late
}

void each_failed_rung_is_tried_less_often() {
  Stream stream;
  stream.pass = 0.19;  // four passes take 0.76 s, three 0.57
  stream.idle = 0.8;   // no lead that lasts
  stream.chunk(1);
  std::vector<int> tries;  // the chunks with four passes
  for (int i = 0; i < 300; ++i) {
    stream.chunk();
    if (stream.pace.passes == kPasses && !stream.pace.optional_work) tries.push_back(i);
  }
  CHECK(tries.size() >= 5);
  for (std::size_t i = 2; i + 1 < tries.size(); ++i) {
    const int gap = tries[i + 1] - tries[i];
    CHECK(gap >= tries[i] - tries[i - 1] && gap <= 70);
  }
  CHECK(tries.back() - tries[tries.size() - 2] > 60);
  // Once there is time again, all comes back.
  stream.pass = 0.05;
  for (int i = 0; i < 140; ++i) stream.chunk();
  CHECK(is(stream.pace, true, 4, 16));
  // And when that has lasted, the next try comes as soon as the first one did.
  stream.pass = 0.19;
  stream.chunk();
  stream.pass = 0.05;
  for (int i = 0; i < 4; ++i) {
    stream.chunk();
    CHECK(!stream.pace.optional_work);
  }
  stream.chunk();
  CHECK(stream.pace.optional_work);
}

void a_chunk_just_in_time_is_no_reason_to_go_up() {
  Stream stream;
  stream.idle = 0.5;
  stream.chunk(1);
  stream.fixed = 1.0;
  stream.chunk();
  stream.fixed = 0.82 * kChunk / kRate;
  for (int i = 0; i < 20; ++i) stream.chunk();
  CHECK(is(stream.pace, false, 4, 16));
  for (int i = 0; i < 20; ++i) {  // nor are a few with time to spare, now and then
    stream.fixed = (i % 4 == 3 ? 0.82 : 0.5) * kChunk / kRate;
    stream.chunk();
  }
  CHECK(is(stream.pace, false, 4, 16));
  stream.fixed = 0.78 * kChunk / kRate;
  for (int i = 0; i < 5; ++i) stream.chunk();
  CHECK(is(stream.pace, true, 4, 16));

  // Nor is time to spare at a lower rate which the higher one would not leave.
  stream.fixed = 2.0;
  for (int i = 0; i < 6; ++i) stream.chunk();
  stream.fixed = 0.7;
  for (int i = 0; i < 20; ++i) stream.chunk();
  CHECK(is(stream.pace, false, 1, 12));
  stream.fixed = 0.59;
  for (int i = 0; i < 5; ++i) stream.chunk();
  CHECK(is(stream.pace, false, 1, 16));
}

void what_is_not_judged() {
  // The first chunk of all, short ones, ones given up, and all without adapting.
  Stream stream;
  stream.fixed = 5.0;
  stream.chunk();
  stream.chunk(kChunk - 1);
  stream.pacer.begin(stream.now, kPasses);
  CHECK(is(stream.pacer.begin(stream.now + 9, kPasses), true, 4, 16));

  Pacer steady(kRate, kChunk, false);
  double now = 0;
  for (int i = 0; i < 9; ++i) {
    CHECK(is(steady.begin(now, kPasses), true, 4, 16));
    now += 3;
    CHECK((steady.end(now, kChunk).lead < 0) == (i > 0));
  }
}

void wanted_passes_may_change() {
  Stream stream;
  stream.fixed = 2.0;
  stream.chunk(1);
  for (int i = 0; i < 3; ++i) stream.chunk();
  CHECK(is(stream.pacer.begin(stream.now, 4), false, 2, 16));
  CHECK(is(stream.pacer.begin(stream.now, 2), false, 1, 16));
  CHECK(is(stream.pacer.begin(stream.now, 6), false, 5, 16));
}

template <typename Error, typename Function>
bool refused(Function function) {
  try {
    function();
  } catch (const Error&) {
    return true;
  }
  return false;
}

void bad_arguments() {
  using Bad = std::invalid_argument;
  const double nan = std::numeric_limits<double>::quiet_NaN();
  CHECK(refused<Bad>([] { Pacer(0, 1, true); }));
  CHECK(refused<Bad>([&] { Pacer(nan, 1, true); }));
  CHECK(refused<Bad>([] { Pacer(1, 0, true); }));
  Pacer pacer(1, 1, true);
  CHECK(refused<std::logic_error>([&] { pacer.end(1, 1); }));
  CHECK(refused<Bad>([&] { pacer.begin(nan, 1); }));
  CHECK(refused<Bad>([&] { pacer.begin(0, 0); }));
  pacer.begin(5, 1);
  CHECK(refused<Bad>([&] { pacer.end(4, 1); }));
  CHECK(refused<Bad>([&] { pacer.end(6, 0); }));
  CHECK(near(pacer.end(6, 1).lead, 0));
}

}  // namespace

int main() {
  deadlines_and_jitter();
  a_late_chunk_is_still_played_as_long();
  goes_down_rung_by_rung_and_up_again();
  a_chunk_just_in_time_is_no_reason_to_go_up();
  a_lead_is_spent_before_quality();
  each_failed_rung_is_tried_less_often();
  what_is_not_judged();
  wanted_passes_may_change();
  bad_arguments();
  return 0;
}
