package topic

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// streamOracle is a stream as one would write it down.
type streamOracle struct {
	kept []kept
	top  uint64
}

func (o *streamOracle) trim(now int64, most, bytes int) {
	sum := 0
	for _, k := range o.kept {
		sum += k.p.weight() + keptOverhead
	}
	for len(o.kept) > 0 && (o.kept[0].ends <= now || len(o.kept) > most || sum > bytes) {
		sum -= o.kept[0].p.weight() + keptOverhead
		o.kept = o.kept[1:]
	}
}

func (o *streamOracle) read(f *Filter) (out []uint64) {
	all := make([]uint64, 0, len(o.kept))
	for _, k := range o.kept {
		all = append(all, k.p.Offset)
	}
	if f.Reverse {
		slices.Reverse(all)
	}
	for _, offset := range all {
		if s := f.Since; s != nil && (!f.Reverse && offset <= s.Offset || f.Reverse && offset >= s.Offset) {
			continue
		}
		if f.Limit >= 0 && len(out) == f.Limit {
			break
		}
		out = append(out, offset)
	}
	return out
}

func offsets(all []*Publication) (out []uint64) {
	for _, p := range all {
		out = append(out, p.Offset)
	}
	return out
}

func TestStreamAgainstOracle(t *testing.T) {
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 2))
		s, o := newStream("a", 0, time.Hour), &streamOracle{}
		most := 1 + rng.IntN(60)
		bytes := 500 + rng.IntN(20000)
		for now := int64(1); now < 2000; now++ {
			switch k := rng.IntN(20); {
			case k < 12:
				p := &Publication{Data: make([]byte, rng.IntN(100)), Offset: s.top + 1, Previous: s.top}
				ttl := time.Duration(50)
				s.add(p, now, &PublishOptions{HistoryTTL: ttl})
				o.kept, o.top = append(o.kept, kept{p, now + int64(ttl)}), p.Offset
				s.trim(now, most, bytes)
				o.trim(now, most, bytes)
			case k < 13:
				s.trim(now, math.MaxInt, math.MaxInt)
				o.trim(now, math.MaxInt, math.MaxInt)
			case k < 14:
				now += int64(rng.IntN(60))
				s.trim(now, math.MaxInt, math.MaxInt)
				o.trim(now, math.MaxInt, math.MaxInt)
			case k == 14 && rng.IntN(20) == 0:
				s.trim(math.MaxInt64, 0, 0)
				o.kept = nil
			}
			f := Filter{Limit: rng.IntN(80) - 1, Reverse: rng.IntN(2) == 0}
			switch at := int64(s.top) + int64(rng.IntN(80)) - 70; rng.IntN(8) {
			case 0:
			case 1:
				f.Since = &Position{Offset: 0}
			case 2:
				f.Since = &Position{Offset: math.MaxUint64 - uint64(rng.IntN(2))}
			default:
				f.Since = &Position{Offset: uint64(max(at, 0))}
			}
			if got, want := offsets(s.read(&f)), o.read(&f); !slices.Equal(got, want) {
				t.Fatalf("seed %d, at %d: %+v since %+v: %v, want %v", seed, now, f, f.Since, got, want)
			}
			sum := 0
			for _, k := range o.kept {
				sum += k.p.weight() + keptOverhead
			}
			if s.len() != len(o.kept) || s.bytes != sum || s.top != o.top {
				t.Fatalf("seed %d, at %d: %d kept of %d bytes, top %d; want %d of %d, top %d",
					seed, now, s.len(), s.bytes, s.top, len(o.kept), sum, o.top)
			}
			if cap(s.kept) > 4*max(most, 32) {
				t.Fatalf("seed %d: room for %d, at most %d are kept", seed, cap(s.kept), most)
			}
			for _, k := range s.kept[:s.first] {
				if k.p != nil {
					t.Fatalf("seed %d: a publication that is over is still held", seed)
				}
			}
		}
	}
}

// What is read stays as it is when the stream goes on.
func TestStreamReadIsACopy(t *testing.T) {
	s := newStream("a", 0, time.Hour)
	for range 40 {
		s.add(&Publication{Offset: s.top + 1}, 0, &PublishOptions{HistoryTTL: time.Hour})
	}
	got := s.read(&Filter{Limit: -1})
	for range 40 {
		s.add(&Publication{Offset: s.top + 1}, 0, &PublishOptions{HistoryTTL: time.Hour})
		s.trim(0, 10, math.MaxInt)
	}
	for i, p := range got {
		if p == nil || p.Offset != uint64(i+1) {
			t.Fatalf("at %d: %+v", i, p)
		}
	}
}

func TestStreamVersions(t *testing.T) {
	for _, tt := range []struct {
		name    string
		before  []string // version/epoch
		publish string
		older   bool
	}{
		{"the first", nil, "1/", false},
		{"newer", []string{"1/"}, "2/", false},
		{"the same", []string{"2/"}, "2/", true},
		{"older", []string{"5/"}, "4/", true},
		{"without a version", []string{"5/"}, "0/", false},
		{"behind one without", []string{"5/", "0/"}, "5/", true},
		{"older, of the same epoch", []string{"5/a"}, "5/a", true},
		{"older, of another epoch", []string{"5/a"}, "1/b", false},
		{"older, of no epoch", []string{"5/a"}, "5/", true},
		{"of an epoch behind none", []string{"5/"}, "1/a", false},
		{"of the epoch before", []string{"5/a", "1/b"}, "2/a", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			parse := func(v string) (n uint64, e string) {
				if _, err := fmt.Sscanf(v, "%d/", &n); err != nil {
					t.Fatal(err)
				}
				return n, v[2:]
			}
			s := newStream("a", 0, time.Hour)
			for _, b := range tt.before {
				n, e := parse(b)
				s.add(&Publication{Offset: s.top + 1}, 0, &PublishOptions{HistoryTTL: 1, Version: n, VersionEpoch: e})
			}
			if n, e := parse(tt.publish); s.older(n, e) != tt.older {
				t.Errorf("older: %v", !tt.older)
			}
		})
	}
}
