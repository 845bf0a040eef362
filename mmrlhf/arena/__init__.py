"""`mmrlhf arena`: models ranked by the votes of people, or of a judge, who do not see their names.

Each module imports only those before it:

style         length and markdown of answers
ratings       Bradley-Terry ratings with bootstrap intervals and style control
ledger        which models a pair compares, void votes and a judge's replies, in the file of votes
kept_answers  pairs from files of answers
votes         people's labels and a judge's replies as votes
judge         a judge, asked in both orders
live          pairs from models that answer while people vote
serve         the page, and the judge's run
leaderboard   ratings by voter and category, sentences, agreement of judge and people
page          the leaderboard in the terminal and as HTML
export        votes as preferences
"""
