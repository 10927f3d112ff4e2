package bench

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
)

func TestStamp(t *testing.T) {
	for _, due := range []int64{0, 1, now(), 1<<63 - 1} {
		for _, size := range []int{0, 1, 40, 128, 4096} {
			s := stamped(due, size)
			if !json.Valid([]byte(s)) {
				t.Fatalf("not JSON: %s", s)
			}
			if least := len(stamped(due, 0)); len(s) != max(size, least) {
				t.Fatalf("%d bytes of %d", len(s), size)
			}
			// Alone, and inside what a server makes of it.
			for _, form := range []string{s, `{"push":{"channel":"bench","pub":{"data":` + s + `,"offset":3}}}`} {
				if got, ok := stamp([]byte(form)); !ok || got != due {
					t.Fatalf("%d is read as %d, %v: %s", due, got, ok, form)
				}
			}
		}
	}
	for _, s := range []string{"", "{}", `{"due":`, `{"due":12`, `{"due":x,"pad":""}`, `{"due":99999999999999999999,"pad":""}`} {
		if got, ok := stamp([]byte(s)); ok {
			t.Errorf("%q has the stamp %d", s, got)
		}
	}
}

func TestSplitLines(t *testing.T) {
	for text, want := range map[string][]string{
		"":             nil,
		"\n":           nil,
		"{}":           {"{}"},
		"{}\n":         {"{}"},
		"{}\n\n[1]\n2": {"{}", "[1]", "2"},
	} {
		var got []string
		for line := range splitLines([]byte(text)) {
			got = append(got, string(line))
		}
		if !slices.Equal(got, want) {
			t.Errorf("%q is %q", text, got)
		}
	}
	for range splitLines([]byte("1\n2")) {
		break // must not go on
	}
}

func TestRefused(t *testing.T) {
	lines := &speaker{lines: true}
	for text, want := range map[string]bool{
		`{"id":1,"error":{"code":101,"message":"unauthorized"}}`:     true,
		`{"id":123456789,"error":{"code":101,"message":"x"}}`:        true,
		`{"id":1,"connect":{"client":"c"}}`:                          false,
		`{"push":{"channel":"a-long-name","pub":{"error":{"a":1}}}}`: false,
		`{}`: false,
	} {
		why, bad := lines.refused([]byte(text))
		if bad != want || bad && !strings.Contains(why, text) {
			t.Errorf("%s: %v %q", text, bad, why)
		}
	}
	if _, bad := (&speaker{}).refused([]byte(`{"error":{}}`)); bad {
		t.Error("what is echoed is no refusal")
	}
}

func TestPublishCommand(t *testing.T) {
	var c struct {
		ID      int
		Publish struct {
			Channel string
			Data    json.RawMessage
		}
	}
	data := stamped(77, 128)
	if err := json.Unmarshal(publish(nil, 12, `a"b`, data), &c); err != nil {
		t.Fatal(err)
	}
	if c.ID != 12 || c.Publish.Channel != `a"b` || string(c.Publish.Data) != data {
		t.Fatalf("%+v", c)
	}
}
