package main

import (
	"os"
	"strings"
	"testing"
)

// Each fixture is the status of a StreamingJob in one phase, as the operator writes it; the first line of the
// file says what kstatus makes of it.
func TestFixtures(t *testing.T) {
	entries, err := os.ReadDir("fixtures")
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) < 8 {
		t.Fatalf("only %d fixtures", len(entries))
	}
	for _, entry := range entries {
		text, err := os.ReadFile("fixtures/" + entry.Name())
		if err != nil {
			t.Fatal(err)
		}
		want, object, found := strings.Cut(string(text), "\n")
		if !found {
			t.Fatalf("%s has no first line", entry.Name())
		}
		var out strings.Builder
		if err := run(strings.NewReader(object), &out); err != nil {
			t.Fatalf("%s: %v", entry.Name(), err)
		}
		if got, _, _ := strings.Cut(out.String(), " "); got != want {
			t.Errorf("%s: %s, want %s", entry.Name(), strings.TrimSpace(out.String()), want)
		}
	}
}
