package bench

import (
	"math"
	"testing"
	"time"
)

func TestHuman(t *testing.T) {
	for want, got := range map[string]string{
		"0 s":        humanDuration(0),
		"999 ns":     humanDuration(999),
		"8.21 µs":    humanDuration(8210),
		"999 µs":     humanDuration(999_400),
		"1.00 ms":    humanDuration(999_600),
		"134 ms":     humanDuration(134 * time.Millisecond),
		"2.50 s":     humanDuration(2500 * time.Millisecond),
		"-12.0 µs":   humanDuration(-12 * time.Microsecond),
		"3m20s":      humanDuration(200 * time.Second),
		"934 B":      humanBytes(934),
		"7.85 KiB":   humanBytes(7.85 * 1024),
		"1.00 KiB":   humanBytes(1023.9),
		"17.2 MiB":   humanBytes(17.2 * (1 << 20)),
		"-2.00 KiB":  humanBytes(-2048),
		"950 /s":     humanRate(950),
		"9,950 /s":   humanRate(9950),
		"124 k/s":    humanRate(124_000),
		"1.25 M/s":   humanRate(1.25e6),
		"1,250,000":  humanCount(1250000),
		"-1,000":     humanCount(-1000),
		"12":         humanCount(12),
		"9.10 µs":    humanValue(9.1, "us"),
		"1.04":       humanValue(1.04, ""),
		"4.00 KiB":   humanValue(4096, "B"),
		"0.83×":      humanRatio(0.83),
		"0.039×":     humanRatio(0.0389),
		"120×":       humanRatio(120.2),
		"p99.9":      humanPercentile(99.9),
		"p50":        humanPercentile(50),
		"62%":        humanShare(0.62),
		noValue:      humanRate(math.NaN()) + "",
		"24,000 B":   bytesEach(24000),
		"deliveries": pluralNoun("delivery"),
		"1 process":  pluralOf(1, "process", "processes"),
		"a�[2J b":    printable("a\x1b[2J\nb"),
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
