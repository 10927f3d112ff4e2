package config

import (
	"errors"
	"fmt"
	"math"
	"reflect"
	"strconv"
	"strings"
	"time"
)

// What a value must be, as the end of "… must be".
var wants = map[kind]string{
	kindString:   "text",
	kindBool:     "true or false",
	kindInt:      "a whole number",
	kindSize:     "a size such as 65536, 64KiB or 1MiB",
	kindFloat:    "a number",
	kindDuration: "a duration with its unit, such as 25s or 1h30m",
	kindStrings:  "a list of texts",
	kindSection:  "a section of keys",
	kindList:     "a list of entries",
}

// mustBe says what is wrong with a value of k. got is shown, unless k is a
// secret.
func (k *key) mustBe(got string) error {
	if k.secret || got == "" {
		return fmt.Errorf("must be %s", wants[k.kind])
	}
	if len(got) > 60 {
		got = got[:60] + "…"
	}
	return fmt.Errorf("%q must be %s", got, wants[k.kind])
}

// parse reads the text of a value of k as a variable, a flag or a quoted YAML
// scalar gives it.
func (k *key) parse(text string) (any, error) {
	switch k.kind {
	case kindString:
		return text, nil
	case kindBool:
		if v, err := strconv.ParseBool(text); err == nil {
			return v, nil
		}
	case kindInt:
		v, err := strconv.ParseInt(text, 10, 64)
		if err == nil {
			return k.integer(v)
		}
		if errors.Is(err, strconv.ErrRange) {
			return nil, fmt.Errorf("%s is too large", text)
		}
	case kindSize:
		v, err := parseSize(text)
		if err == nil {
			return k.integer(v)
		}
		if errors.Is(err, strconv.ErrRange) {
			return nil, fmt.Errorf("%s is too large", text)
		}
	case kindFloat:
		if v, err := strconv.ParseFloat(text, 64); err == nil && !math.IsNaN(v) && !math.IsInf(v, 0) {
			return v, nil
		}
	case kindDuration:
		if v, err := time.ParseDuration(text); err == nil {
			return v, nil
		}
	case kindStrings:
		var list []any
		for item := range strings.SplitSeq(text, ",") {
			if item = strings.TrimSpace(item); item != "" {
				list = append(list, item)
			}
		}
		return list, nil
	}
	return nil, k.mustBe(text)
}

// integer refuses what the field's type can't hold.
func (k *key) integer(v int64) (any, error) {
	if reflect.Zero(k.typ).OverflowInt(v) {
		return nil, fmt.Errorf("%d is too large", v)
	}
	return v, nil
}

// sizes are the suffixes of a size, all powers of 1024: one reading each, so
// that nobody has to know whether kb is 1000 or 1024.
var sizes = []struct {
	suffix string
	shift  uint
}{{"KiB", 10}, {"MiB", 20}, {"GiB", 30}, {"TiB", 40}, {"B", 0}, {"", 0}}

func parseSize(text string) (int64, error) {
	for _, s := range sizes {
		number, ok := strings.CutSuffix(text, s.suffix)
		if !ok {
			continue
		}
		v, err := strconv.ParseInt(strings.TrimSpace(number), 10, 64)
		if err != nil {
			return 0, err
		}
		if v > math.MaxInt64>>s.shift || v < math.MinInt64>>s.shift {
			return 0, strconv.ErrRange
		}
		return v << s.shift, nil
	}
	return 0, strconv.ErrSyntax
}

// typed checks a value that comes from Go code, a flag's.
func (k *key) typed(v any) (any, error) {
	if text, ok := v.(string); ok {
		return k.parse(text)
	}
	if list, ok := v.([]string); ok && k.kind == kindStrings {
		out := make([]any, len(list))
		for i := range list {
			out[i] = list[i]
		}
		return out, nil
	}
	if reflect.TypeOf(v) == k.typ {
		return v, nil
	}
	return nil, k.mustBe(fmt.Sprint(v))
}
