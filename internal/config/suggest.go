package config

import "strings"

// closest finds the candidate that was most likely meant by name, or "".
func closest(name string, candidates []string) string {
	name = strings.ToLower(name)
	best, bestScore := "", 1<<30
	for _, c := range candidates {
		lower := strings.ToLower(c)
		score := distance(name, lower)
		switch {
		case score <= max(1, len(name)/4):
		case len(name) >= 4 && (strings.HasPrefix(lower, name) || strings.HasPrefix(name, lower)):
			// A cut name (allow_subscribe) is further away than a typo, and still
			// plainly meant: of several, the shortest.
			score += 100
		case score <= max(2, len(name)/3):
			score += 200
		default:
			continue
		}
		if score < bestScore {
			best, bestScore = c, score
		}
	}
	return best
}

// distance is the number of letters to insert, drop, replace or swap with
// their neighbour (the optimal string alignment distance).
func distance(a, b string) int {
	before := make([]int, len(b)+1)
	row := make([]int, len(b)+1)
	next := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		next[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			next[j] = min(next[j-1]+1, row[j]+1, row[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				next[j] = min(next[j], before[j-2]+1)
			}
		}
		before, row, next = row, next, before
	}
	return row[len(b)]
}

// unknownKey says that parent has no key of a name, and which may be meant: a
// sibling, else a key of that very name elsewhere.
func unknownKey(root, parent *key, name string) string {
	var siblings []string
	for _, k := range parent.keys {
		siblings = append(siblings, k.name)
	}
	meant := closest(name, siblings)
	if meant == "" {
		root.walk(func(k *key) {
			if meant == "" && k.name == name {
				meant = k.path
			}
		})
	}
	if meant == "" {
		return "unknown key"
	}
	return "unknown key (did you mean " + meant + "?)"
}
