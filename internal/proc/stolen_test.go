package proc

import "testing"

func TestStolenOf(t *testing.T) {
	stolen, all, err := stolenOf("cpu  10 1 20 300 4 0 5 60 7 8\ncpu0 1 1 1 1 1 1 1 1 0 0\n")
	if stolen != 60 || all != 400 || err != nil {
		t.Errorf("%d of %d, %v", stolen, all, err)
	}
	for _, s := range []string{"", "cpu 1 2 3 4 5 6 7", "cpu0 1 2 3 4 5 6 7 8 9 10", "intr 1 2 3 4 5 6 7 8", "cpu 1 2 3 4 5 6 7 x 9 10"} {
		if _, _, err := stolenOf(s); err == nil {
			t.Errorf("%q: no error", s)
		}
	}
}

func TestStolen(t *testing.T) {
	s1, a1, err := Stolen()
	if err != nil || s1 < 0 || a1 <= s1 {
		t.Fatalf("%d of %d, %v", s1, a1, err)
	}
	s2, a2, err := Stolen()
	if err != nil || s2 < s1 || a2 < a1 {
		t.Fatalf("from %d of %d to %d of %d, %v", s1, a1, s2, a2, err)
	}
}
